"""The arguments of a model as examples: how many there are, some of them, and where to cut them into pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any


def is_array(argument: Any) -> bool:
    """Whether an argument is an array: of torch, JAX or NumPy."""
    return hasattr(argument, "ndim") and hasattr(argument, "shape") and hasattr(argument, "dtype")


def number_of_examples(args: tuple, kwargs: dict) -> int:
    """Length of the first axis of the first array among the arguments, and in the dicts, lists and tuples there.

    Raises:
        ValueError: no argument is an array with an axis.
    """
    for argument in _leaves((args, kwargs)):
        if is_array(argument) and argument.ndim:
            return argument.shape[0]
    raise ValueError("batch_size: expected an array of examples among the arguments, got none to cut; leave it out")


def take_examples(args: tuple, kwargs: dict, index: Any) -> tuple[tuple, dict]:
    """The arguments with every array whose first axis is that of the examples indexed along it."""
    number = number_of_examples(args, kwargs)

    def take(argument: Any) -> Any:
        is_data = is_array(argument) and argument.ndim and argument.shape[0] == number
        return argument[index] if is_data else argument

    return _map(take, args), _map(take, kwargs)


def batch_bounds(number: int, batch_size: int) -> list[int]:
    """Where to cut. With two lengths of pieces, a site along the examples changes its size, and other sites do not."""
    bounds = [*range(0, number, batch_size), number] if number else [0, 0]
    if number > batch_size == 1:
        bounds.pop(1)
    elif number > batch_size and number % batch_size == 0:
        bounds.insert(-1, number - 1)
    return bounds


def _leaves(argument: Any) -> Iterator[Any]:
    if isinstance(argument, dict):
        argument = list(argument.values())
    if isinstance(argument, (list, tuple)):
        for part in argument:
            yield from _leaves(part)
    else:
        yield argument


def _map(function: Callable[[Any], Any], argument: Any) -> Any:
    """``argument`` with ``function`` applied to what dicts, lists and tuples in it hold."""
    if isinstance(argument, dict):
        mapped = copy(argument)  # of its own type
        mapped.update({name: _map(function, part) for name, part in argument.items()})
        return mapped
    if isinstance(argument, (list, tuple)):
        parts = [_map(function, part) for part in argument]
        return type(argument)(*parts) if hasattr(argument, "_fields") else type(argument)(parts)
    return function(argument)
