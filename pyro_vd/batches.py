"""The arguments of a model as examples: how many there are, and some of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def number_of_examples(args: tuple, kwargs: dict) -> int:
    """Length of the first axis of the first tensor argument.

    Raises:
        ValueError: no argument is a tensor with an axis.
    """
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Tensor) and argument.dim():
            return argument.shape[0]
    raise ValueError("batch_size: expected a tensor of examples among the arguments, got none to cut; leave it out")


def take_examples(args: tuple, kwargs: dict, index: slice | Tensor) -> tuple[tuple, dict]:
    """The arguments with every tensor whose first axis is that of the examples indexed along it."""
    number = number_of_examples(args, kwargs)

    def take(argument: Any) -> Any:
        is_data = isinstance(argument, Tensor) and argument.dim() and argument.shape[0] == number
        return argument[index] if is_data else argument

    return tuple(map(take, args)), {name: take(argument) for name, argument in kwargs.items()}
