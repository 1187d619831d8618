"""Where the axis of channels goes in functions that move, split, merge and index axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

REDUCTIONS = {"mean", "sum", "amax", "amin"}
PERMUTATIONS = {"transpose", "swapaxes", "mT", "permute"}
VIEWS = {"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"}
MOVES = REDUCTIONS | PERMUTATIONS | VIEWS | {"getitem", "index_select", "gather"}


class Place(NamedTuple):
    """The axis of channels in the output: each fills ``repeats`` places there, or ``together`` are one place."""

    axis: int
    repeats: int = 1
    together: int = 1


def place(
    name: str, x: Tensor, axis: int, output: Tensor, args: tuple, kwargs: dict, sizes_are_free: bool
) -> Place | None:
    """Where the channels on ``axis`` of ``x`` are in the output of one of ``MOVES``; None where that is not known.

    Args:
        args: those after ``x``.
        sizes_are_free: take a view to a size given as a number as one that follows the channels.
    """
    if name == "getitem":
        return _indexed(args[0], axis, x.dim())
    if name in REDUCTIONS:
        dims, keep = bound(args, kwargs, "dim", "keepdim")
        gone = {one % x.dim() for one in several(dims)} if dims is not None else set(range(x.dim()))
        return None if axis in gone else Place(axis if keep else axis - sum(one < axis for one in gone))
    if name in PERMUTATIONS:
        order = list(range(x.dim()))
        if name == "permute":
            order = [one % x.dim() for one in several(args or kwargs["dims"])]
        else:
            first, second = (-2, -1) if name == "mT" else bound(args, kwargs, "dim0", "dim1")
            order[first], order[second] = order[second], order[first]
        return Place(order.index(axis))
    if name in ("index_select", "gather"):
        dim, index = bound(args, kwargs, "dim", "index")
        if dim % x.dim() == axis or output.shape[axis] != x.shape[axis] or (name == "gather" and not sizes_are_free):
            return None
        return Place(axis) if name != "gather" or (index == index.narrow(axis, 0, 1)).all() else None
    given = [one for one in several(args) if isinstance(one, int)] if name in ("view", "reshape") else []
    return _viewed(x, axis, output, [] if sizes_are_free else given)


def _viewed(x: Tensor, axis: int, output: Tensor, given: list[int]) -> Place | None:
    """The axis that has the channels alone, beside axes of the same size before and behind."""
    size, before, behind = x.shape[axis], x.shape[:axis].numel(), x.shape[axis + 1 :].numel()
    for new in range(output.dim()):
        held, rest = output.shape[new], output.shape[new + 1 :].numel()
        if output.shape[:new].numel() != before or held in given:
            continue
        if held * rest == size * behind and held == size * (held // max(size, 1)) and size:
            return Place(new, held // size)
        # A split into (held, together): heads of attention, say.
        if 1 < held < size and size % held == 0 and output.shape[new + 1] * held == size:
            return Place(new, together=size // held)
    return None


def _indexed(index: Any, axis: int, dim: int) -> Place | None:
    """Numbers and slices that leave the axis whole."""
    parts = list(index) if isinstance(index, tuple) else [index]
    known = all(one is None or one is ... or type(one) in (int, slice) for one in parts)
    if not known:
        return None
    taken = sum(one is not None and one is not ... for one in parts)
    parts = parts if ... in parts else [*parts, ...]
    middle = parts.index(...)
    parts[middle : middle + 1] = [slice(None)] * (dim - taken)
    old = new = 0
    for one in parts:
        if one is not None and old == axis:
            return Place(new) if one == slice(None) else None
        old += one is not None
        new += one is None or isinstance(one, slice)
    return None


def bound(args: tuple, kwargs: dict, *names: str) -> Iterator[Any]:
    """Arguments by position or name, None where not given."""
    return (args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names))


def several(value: Any, length: int = 1) -> list:
    """A number or a sequence of numbers as a list."""
    if isinstance(value, (tuple, list)):
        return [one for part in value for one in several(part)] if len(value) else [0]
    return [0 if value is None else value] * length
