"""The table operation -> rule: which linear operation a call is, and which argument is its weight.

A rule has the signature of the operation it is for and returns the call as a :class:`LinearOp`, or None where
it does not cover these arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vd.estimators import LinearOp


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearOp:
    example = -input.dim() if input.dim() > 1 and weight.dim() == 2 else None
    return LinearOp(F.linear, input, weight, bias, weight.dim() - 1, 0, -1, -1, example)


def _matmul(random: Callable[[Any], bool], input: Tensor, other: Tensor, bias: Tensor | None = None) -> LinearOp | None:
    """``input @ other + bias``, the weight on either side."""
    if bias is not None and random(bias) and not _has_all_units(bias, input, other, left=random(input)):
        return None
    if random(other) and not random(input):
        if other.dim() < 2:
            return None
        stacked = 2 < other.dim() <= input.dim()  # one matrix for each example: no weight is shared by the examples
        example = -input.dim() if input.dim() > 1 and not stacked else None
        return LinearOp(_right_product, input, other, bias, other.dim() - 2, other.dim() - 1, -1, -1, example)
    if random(input) and not random(other):
        if input.dim() != 2 or other.dim() > 2:
            return None
        matrix = other.dim() == 2
        return LinearOp(
            _left_product, other, input, bias, 1, 0, -2 if matrix else -1, -2 if matrix else -1, -1 if matrix else None
        )
    if random(bias) and not (random(input) or random(other)):
        example = -input.dim() if input.dim() > 1 else None
        return LinearOp(_right_product, input, other, bias, other.dim() - 2, other.dim() - 1, -1, -1, example)
    return None


def _has_all_units(bias: Tensor, input: Tensor, other: Tensor, left: bool) -> bool:
    """Whether a bias has an element for every output unit; where one serves several, they share its noise."""
    if not left:
        return other.dim() > 1 and bias.shape[-1:] == other.shape[-1:]
    axis = -2 if other.dim() == 2 else -1
    return bias.dim() >= -axis and bias.shape[axis] == input.shape[0]


def _addmm(
    random: Callable[[Any], bool], input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> LinearOp | None:
    """``beta * input + alpha * (mat1 @ mat2)``: the scales go to the bias and to the matrix that is not random."""
    bias = input if beta == 1 else input * beta
    if alpha != 1:
        mat1, mat2 = (mat1, mat2 * alpha) if random(mat1) else (mat1 * alpha, mat2)
    return _matmul(random, mat1, mat2, bias)


def _add(random: Callable[[Any], bool], input: Tensor, other: Any, *, alpha: float = 1) -> LinearOp | None:
    """``input + other`` where one is a random bias that is broadcast over the rows of the other."""
    if alpha != 1 or not isinstance(other, Tensor):
        return None
    x, bias = (input, other) if random(other) else (other, input)
    if (
        random(x)
        or bias.shape[-1:] != x.shape[-1:]
        or bias.dim() >= x.dim()
        or torch.broadcast_shapes(x.shape, bias.shape) != x.shape
    ):
        return None
    return LinearOp(_scale_and_shift, x, x.new_ones(()), bias, 0, 0, -1, -1, -x.dim())


def _conv(spatial: int, operation: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None,
          stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> LinearOp:  # fmt: skip
    def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return operation(x, w, b, stride, padding, dilation, groups)

    example = -(spatial + 2) if input.dim() == spatial + 2 else None
    return LinearOp(apply, input, weight, bias, 1, 0, -spatial - 1, -spatial - 1, example, spatial)


def _right_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else x @ weight + bias


def _left_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight @ x if bias is None else weight @ x + bias


def _scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x * weight if bias is None else x * weight + bias


def rules(random: Callable[[Any], bool]) -> dict[Callable[..., Any], Callable[..., LinearOp | None]]:
    """The table; ``random`` tells a random weight from a tensor."""
    matmul, addmm, add = partial(_matmul, random), partial(_addmm, random), partial(_add, random)
    T = torch.Tensor
    return {
        F.linear: _linear,
        **dict.fromkeys((torch.matmul, T.matmul, T.__matmul__, torch.mm, T.mm, torch.mv, T.mv), _renamed(matmul)),
        T.__rmatmul__: lambda other, input: matmul(input, other),
        **dict.fromkeys((torch.addmm, T.addmm), addmm),
        **dict.fromkeys((torch.add, T.add, T.__add__, T.__radd__), add),
        F.conv1d: partial(_conv, 1, F.conv1d),
        F.conv2d: partial(_conv, 2, F.conv2d),
        F.conv3d: partial(_conv, 3, F.conv3d),
    }


def _renamed(matmul: Callable[..., LinearOp | None]) -> Callable[..., LinearOp | None]:
    """torch.matmul, mm and mv name their second argument differently."""

    def rule(input: Tensor, *second: Tensor, **named: Tensor) -> LinearOp | None:
        if not set(named) <= {"other", "mat2", "tensor2", "vec"}:
            return None
        (other,) = (*second, *named.values())
        return matmul(input, other)

    return rule
