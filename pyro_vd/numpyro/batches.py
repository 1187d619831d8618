"""The arguments of a model as examples: how many there are, and some of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def is_array(argument: Any) -> bool:
    """Whether an argument is an array, of JAX or NumPy."""
    return isinstance(argument, (jax.Array, np.ndarray))


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
