"""The arguments of a model as examples: how many there are, some of them, and where to cut them into pieces."""

from __future__ import annotations

from typing import Any


def is_array(argument: Any) -> bool:
    """Whether an argument is an array: of torch, JAX or NumPy."""
    return hasattr(argument, "ndim") and hasattr(argument, "shape") and hasattr(argument, "dtype")


def number_of_examples(args: tuple, kwargs: dict) -> int:
    """Length of the first axis of the first array argument.

    Raises:
        ValueError: no argument is an array with an axis.
    """
    for argument in (*args, *kwargs.values()):
        if is_array(argument) and argument.ndim:
            return argument.shape[0]
    raise ValueError("batch_size: expected an array of examples among the arguments, got none to cut; leave it out")


def take_examples(args: tuple, kwargs: dict, index: Any) -> tuple[tuple, dict]:
    """The arguments with every array whose first axis is that of the examples indexed along it."""
    number = number_of_examples(args, kwargs)

    def take(argument: Any) -> Any:
        is_data = is_array(argument) and argument.ndim and argument.shape[0] == number
        return argument[index] if is_data else argument

    return tuple(map(take, args)), {name: take(argument) for name, argument in kwargs.items()}


def batch_bounds(number: int, batch_size: int) -> list[int]:
    """Where to cut. Pieces of two lengths tell a site along the examples from one that is as long as a piece."""
    bounds = [*range(0, number, batch_size), number]
    if number > batch_size == 1:
        bounds.pop(1)
    elif number > batch_size and number % batch_size == 0:
        bounds.insert(-1, number - 1)
    return bounds
