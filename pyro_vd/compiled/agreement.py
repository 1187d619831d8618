"""Comparison of compiled and eager results with the same noise, up to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# A gradient of less than this share of the largest is 0 but for rounding: that of a bias before BatchNorm, or of the
# bias of the keys of attention. Adam, which divides by its size, moves it at full speed in a random direction.
ROUNDING = 1e-5
GRADIENTS = 0.02  # relative error allowed in a gradient, and in what a step adds to a parameter
# Share of an optimizer's mean over steps that its move may be wrong by. The mean m of gradients g moves by
# (1 - beta)(g - m): a difference of nearly equal numbers where a training has converged, smaller than g's own rounding.
MEANS = 1e-3


def same_noise(tensors: Iterable[Tensor]) -> Any:
    """A context that leaves the random numbers of PyTorch, on the devices of ``tensors``, as they were before it."""
    devices = {tensor.device.index for tensor in tensors if tensor.is_cuda}
    return torch.random.fork_rng(devices=list(devices))


def agree(value: Tensor, expected: Tensor, tolerance: float = 1e-3, margin: float = 1e-12) -> bool:
    """Whether two tensors are the same up to rounding: by their norms, relative, in the precision that they have.

    Args:
        value, expected: the tensors.
        tolerance: share of the norm of ``expected`` that the norm of the error may have, and
        margin: what it may have besides.
    """
    if value.dtype in (torch.float16, torch.bfloat16):
        tolerance = max(tolerance, 0.3)
    error = torch.linalg.vector_norm((value - expected).double())
    return bool(error.isfinite() & (error <= tolerance * torch.linalg.vector_norm(expected.double()) + margin))


def only_rounding(gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """For each gradient, where it is 0 but for rounding: a mask of its shape, or one truth value for all of it."""
    sizes = [0.0 if gradient is None else float(torch.linalg.vector_norm(gradient)) for gradient in gradients]
    largest = max(sizes, default=0.0)
    return [
        torch.tensor(True)
        if gradient is None or size <= ROUNDING * largest
        else gradient.abs() <= ROUNDING * gradient.abs().max()
        for gradient, size in zip(gradients, sizes, strict=True)
    ]


def moved_alike(
    before: Tensor, value: Tensor, expected: Tensor, left_out: Tensor | None = None, kept: float = 0.0
) -> bool:
    """Whether ``before`` has become ``value`` and ``expected`` by the same move, elements in ``left_out`` aside.

    Args:
        before, value, expected: as above.
        left_out: a mask.
        kept: share of the size of ``before`` by which a move may be wrong besides; never less than its rounding.
    """
    if not before.is_floating_point():
        return True
    move, right = value - before, expected - before
    if left_out is not None:
        move, right = (one.masked_fill(left_out.to(one.device), 0.0) for one in (move, right))
    share = max(kept, torch.finfo(before.dtype).eps)
    return agree(move, right, GRADIENTS, 1e-12 + share * float(torch.linalg.vector_norm(before.double())))
