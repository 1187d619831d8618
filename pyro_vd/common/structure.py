"""A distribution without its tensors: what is the same in every draw, and where the tensors go."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Alternatives: a constructor takes one of them, and the others are computed from it when they are read.
ALTERNATIVES = (
    ("probs", "logits"),
    ("gate", "gate_logits"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
    ("correlation", "weighted_correlation"),
)


@dataclass(frozen=True)
class Slot:
    """The place of a tensor."""


@dataclass(frozen=True)
class Structure:
    """A distribution, or a transform of one, without its tensors.

    Attributes:
        make: what builds it: a class or a function.
        arguments: name -> a place for a tensor, a Structure, or a value that is the same in every draw.
    """

    make: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]

    def build(self, tensors: Sequence[Any]) -> Any:
        """The distribution on ``tensors``, in the order of :func:`take_apart`."""
        return self._build(iter(tensors))

    def _build(self, tensors: Iterator[Any]) -> Any:
        def fill(argument: Any) -> Any:
            if isinstance(argument, Slot):
                return next(tensors)
            return argument._build(tensors) if isinstance(argument, Structure) else argument

        return self.make(**{name: fill(argument) for name, argument in self.arguments})


def is_made_of_transforms(distribution: Any) -> bool:
    """Whether it is made of a base and transforms, and no family of its own as ``LogNormal`` is."""
    return "transforms" in inspect.signature(type(distribution).__init__).parameters


def event_dim_of(distribution: Any, name: str, ndim: int) -> int:
    """How many of the ``ndim`` dimensions of a parameter belong to the event of the distribution."""
    constraint = distribution.arg_constraints.get(name)
    try:
        least = 0 if constraint is None else constraint.event_dim
    except NotImplementedError:  # "dependent" on other arguments
        least = 0
    return min(ndim, max(least, ndim - len(distribution.batch_shape)))
