"""Rules of matrix products, with the weight on either side, of biases and of gains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vd import _torch
from pyro_vd.estimators import LinearOp, is_random
from pyro_vd.operations.contractions import einsum
from pyro_vd.operations.table import enter

T = Tensor
_STACKED = "covariance between the entries of a batch that share a matrix"


@enter(torch.matmul, T.matmul, T.__matmul__, weight=("input", "other"), drops=_STACKED)
def matmul(input: Tensor, other: Tensor) -> LinearOp | None:
    """``input @ other``, batched or not, the weight on either side. Exact for each row of the product."""
    return _product(input, other)


@enter(T.__rmatmul__, weight=("input", "other"), drops=_STACKED)
def rmatmul(input: Tensor, other: Tensor) -> LinearOp | None:
    """``other @ input``: exact, as :func:`matmul`."""
    return _product(other, input)


@enter(torch.mm, T.mm, torch.bmm, T.bmm, weight=("input", "mat2"))
def mm(input: Tensor, mat2: Tensor) -> LinearOp | None:
    """``input @ mat2``: exact. In ``bmm`` every entry of the batch has a matrix of its own."""
    return _product(input, mat2)


@enter(_torch.grouped_mm, weight=("mat2",), drops="covariance between the rows (tokens) of one example")
def grouped_mm(
    self: Tensor, mat2: Tensor, offs: Tensor | None = None, bias: None = None, out_dtype: torch.dtype | None = None
) -> LinearOp | None:
    """``F.grouped_mm(rows, matrices, offs=ends)``: rows that end at ``ends[g]`` times matrix ``g``, exact for each row.

    This is how a mixture of experts calls its experts. Which rows are an example's is not known.
    """
    if self.dim() != 2 or mat2.dim() != 3 or bias is not None or out_dtype is not None:
        return None
    return LinearOp(lambda x, w, bias: _torch.grouped_mm(x, _dense(w), offs), self, mat2, None, 1, 2, example=None)


@enter(torch.mv, T.mv, weight=("input", "vec"))
def mv(input: Tensor, vec: Tensor) -> LinearOp | None:
    """A matrix times a vector: exact."""
    return _product(input, vec)


@enter(torch.addmm, T.addmm, weight=("input", "mat1", "mat2"))
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> LinearOp | None:
    """``beta * input + alpha * (mat1 @ mat2)``: exact. The scales go to the bias and to the factor without noise."""
    bias = input if beta == 1 else input * beta
    if alpha != 1:
        mat1, mat2 = (mat1, mat2 * alpha) if is_random(mat1) else (mat1 * alpha, mat2)
    return _product(mat1, mat2, bias)


@enter(torch.baddbmm, T.baddbmm, weight=("input", "batch1", "batch2"))
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> LinearOp | None:
    """``beta * input + alpha * (batch1 @ batch2)``, entry by entry: exact."""
    return addmm(input, batch1, batch2, beta=beta, alpha=alpha)


@enter(torch.add, T.add, T.__add__, T.__radd__, weight=("input", "other"))
def add(input: Tensor, other: Any, *, alpha: float = 1) -> LinearOp | None:
    """``input + other`` where one is a random bias that is broadcast over the rows of the other: exact for each row."""
    if alpha != 1 or not isinstance(other, Tensor):
        return None
    x, bias = (input, other) if is_random(other) else (other, input)
    if (
        is_random(x)
        or bias.shape[-1:] != x.shape[-1:]
        or bias.dim() >= x.dim()
        or torch.broadcast_shapes(x.shape, bias.shape) != x.shape
    ):
        return None
    return LinearOp(_scale_and_shift, x, x.new_ones(()), bias, 0, 0)


@enter(
    *(torch.mul, torch.multiply, T.mul, T.multiply, T.__mul__, T.__rmul__),
    weight=("input", "other"),
    drops="covariance between elements of a row that share a gain",
)
def mul(input: Tensor, other: Any) -> LinearOp | None:
    """``x * gain``, a random gain of one axis that multiplies every row of the other factor: exact for each row.

    A weight times factors that repeat none of its elements is a view of it; a matrix that a batch would be broadcast
    into is an error.
    """
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return None
    x, gain = (input, other) if is_random(other) else (other, input)
    long = [axis - gain.dim() for axis, size in enumerate(gain.shape) if size > 1]
    repeated = gain.dim() < x.dim() or (gain.dim() > 0 and gain.shape[0] == 1 < x.shape[0])
    if is_random(x) or len(long) > 1 or not repeated or not _broadcasts(gain, x):
        return None
    units = long[0] if long else None
    return LinearOp(_scale_and_shift, x, gain, None, None, None, units, units)


def _product(input: Tensor, other: Tensor, bias: Tensor | None = None) -> LinearOp | None:
    """``input @ other + bias``, the weight on either side."""
    right, left = is_random(other), is_random(input)
    if (right and left) or input.dim() < 1 or other.dim() < 1:
        return None
    if is_random(bias) and not _has_all_units(bias, input, other, left):
        return None
    if right and other.dim() == 1:
        return einsum("...i,i->...", input, other)
    if left and input.dim() == 1:
        return einsum("i,...ij->...j", input, other)
    if left:
        return _left(input, other, bias)
    x_dim, dim = input.dim(), max(input.dim(), other.dim())
    rows = range(x_dim - 1)
    # The examples: the first axis of the input along which the weight is the same.
    example = next((axis for axis in rows if axis == x_dim - 2 or _same(other, axis - x_dim)), None)
    out_example = None if example is None else example + dim - x_dim
    return LinearOp(
        _right_product, input, other, bias, other.dim() - 2, other.dim() - 1, example=example, out_example=out_example
    )


def _dense(matrices: Tensor) -> Tensor:
    """With rows or columns beside each other in memory, as a grouped product wants them; a variance may be expanded."""
    return matrices if matrices.is_contiguous() or matrices.mT.is_contiguous() else matrices.contiguous()


def _left(weight: Tensor, x: Tensor, bias: Tensor | None) -> LinearOp:
    if x.dim() == 1:
        return LinearOp(_left_product, x, weight, bias, weight.dim() - 1, weight.dim() - 2, example=None)
    batch = (axis for axis in range(x.dim() - 2) if _same(weight, axis - x.dim()))
    example = next(batch, x.dim() - 1)
    out_example = example + max(weight.dim() - x.dim(), 0)
    return LinearOp(
        _left_product, x, weight, bias, weight.dim() - 1, weight.dim() - 2, -2, -2, example, out_example
    )  # fmt: skip


def _same(weight: Tensor, axis: int) -> bool:
    """Whether a stack of matrices holds one matrix for all of the batch axis ``axis`` (negative)."""
    return -axis > weight.dim() or weight.shape[axis] == 1


def _has_all_units(bias: Any, input: Tensor, other: Tensor, left: bool) -> bool:
    """Whether a bias has an element for every output unit; where one serves several, they share its noise."""
    if not left:
        return other.dim() > 1 and bias.shape[-1:] == other.shape[-1:]
    axis = -2 if other.dim() > 1 else -1
    return bias.dim() >= -axis and bias.shape[axis] == input.shape[-2]


def _broadcasts(gain: Tensor, x: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(gain.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def _right_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else x @ weight + bias


def _left_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight @ x if bias is None else weight @ x + bias


def _scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x * weight if bias is None else x * weight + bias
