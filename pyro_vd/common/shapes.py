"""Shapes of distributions: of draws, of an expansion, of a value; what they may be needs no array library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from pyro_vd.common.options import check_count, shown


class ShapeError(ValueError, RuntimeError):
    """Shapes that do not broadcast: a ValueError as every refusal here, a RuntimeError as PyTorch's own."""


def check_sizes(owner: str, name: str, value: Any, instead: str) -> tuple[int, ...]:
    """A shape as a tuple of sizes; TypeError for what is no sequence, ValueError for what is no size in it."""
    unordered = isinstance(value, (str, bytes, Mapping, Set)) or hasattr(value, "dtype")
    if unordered or not isinstance(value, Iterable):
        raise TypeError(f"{owner}: expected {name} to be a tuple of sizes, got {shown(value)}; write {instead}")
    try:
        return tuple(check_count(f"every size in {name}", size, 0, owner) for size in value)
    except ValueError as error:
        raise ValueError(f"{error}; write {instead}") from None


def sample_shape_of(distribution: Any, sample_shape: Any) -> tuple[int, ...]:
    """The ``sample_shape`` of a draw as a tuple, or an error that names the distribution."""
    if type(sample_shape) is tuple and not sample_shape:
        return ()
    cure = f"({int(sample_shape)},)" if type(sample_shape) is int and sample_shape > 0 else "a tuple such as (10,)"
    return check_sizes(type(distribution).__name__, "sample_shape", sample_shape, cure)


def expanded_shape(distribution: Any, batch_shape: Any) -> tuple[int, ...]:
    """The batch shape that a distribution is expanded to as a tuple, or an error unless its own broadcasts to it."""
    owner, own = type(distribution).__name__, tuple(distribution.batch_shape)
    shape = check_sizes(owner, "the batch_shape of expand", batch_shape, "a tuple such as (10,)")
    if broadcast(shape, own) != shape:
        raise ShapeError(
            f"{owner}: expected expand to a shape that {own} broadcasts to, got {shape}; write "
            f".expand({(10, *own)}), with new sizes in front of its own or in the place of a 1"
        )
    return shape


def check_one_weight(distribution: Any, batch_shape: Any) -> None:
    """Raise for an expansion of the distribution of one whole weight, which has no batch."""
    cure = "sample it outside of every plate"
    owner = type(distribution).__name__
    if shape := check_sizes(owner, "the batch_shape of expand", batch_shape, "(), or leave expand out"):
        raise ValueError(f"{owner}: expected one weight, got a batch of shape {shape}; {cure}")


def check_value_shape(distribution: Any, shape: Any) -> None:
    """ShapeError unless a value of this shape broadcasts with the shape of the distribution."""
    own = (*distribution.batch_shape, *distribution.event_shape)
    if broadcast(tuple(shape), own) is None:
        raise ShapeError(
            f"{type(distribution).__name__}: expected a value that broadcasts with the shape {own} of the distribution "
            f"(batch {tuple(distribution.batch_shape)}, event {tuple(distribution.event_shape)}), got shape "
            f"{tuple(shape)}: the value is not broadcastable; give one value for each weight, with any samples in front"
        )


def broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that both broadcast to, None without one."""
    if one == other:
        return one
    length = max(len(one), len(other))
    pairs = zip((1,) * (length - len(one)) + one, (1,) * (length - len(other)) + other, strict=True)
    sizes = []
    for left, right in pairs:
        if left != right and 1 not in (left, right):
            return None
        sizes.append(right if left == 1 else left)
    return tuple(sizes)
