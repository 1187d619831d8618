"""A distribution on the device and in the precision of a tensor: a prior follows its weight."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import ExpTransform, Transform

_MOVING = (Tensor, list, tuple, Distribution, Transform)
_INVERSE = type(ExpTransform().inv)  # of any transform: it has the transform itself in the place of its own inverse


def placed_like(distribution: Any, tensor: Tensor) -> Any:
    """The distribution with its tensors where ``tensor`` is, and of its dtype, at least float32 where that is floating.

    The same object where nothing moves; else a copy, differentiable in the tensors of the first.
    """
    return _moved(distribution, tensor.device, torch.promote_types(tensor.dtype, torch.float32))


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        moved = type(value)(_moved(part, device, dtype) for part in value)
        return value if all(new is old for new, old in zip(moved, value, strict=True)) else moved
    if not isinstance(value, (Distribution, Transform)):
        return value
    parts, same = {}, True
    for name, part in vars(value).items():
        if isinstance(part, _MOVING) and type(part) is not torch.Size and not _is_cache(name, part):
            parts[name] = new = _moved(part, device, dtype)
            same &= new is part
    if same:
        return value
    moved = copy.copy(value)
    vars(moved).update(parts)
    if isinstance(value, Transform) and "_inv" not in parts:  # a cache, or None
        moved._inv = None  # type: ignore[union-attr]
    return moved


def _is_cache(name: str, part: Any) -> bool:
    """Whether an attribute is the inverse that a transform remembers, which refers back to it."""
    return name == "_inv" and (not isinstance(part, Transform) or isinstance(part, _INVERSE))
