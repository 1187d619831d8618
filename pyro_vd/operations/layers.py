"""Rules of the dense layers, F.linear and F.bilinear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vd.estimators import LinearOp
from pyro_vd.operations.table import enter


@enter(F.linear, drops="covariance between the rows (tokens) of one example")
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearOp:
    """Exact for each row of the input; the covariance between rows of one example (tokens) is dropped."""
    dim = weight.dim()
    example = 0 if input.dim() > 1 and dim == 2 else None
    return LinearOp(F.linear, input, weight, bias, dim - 1, 0, example=example)


@enter(F.bilinear, drops="covariance between the rows (tokens) of one example")
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearOp:
    """``y_k = input1' W_k input2``: exact for each row, its variance ``bilinear(input1**2, input2**2, variance)``."""
    size = input1.shape[-1]

    def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        first, second = x[..., :size], x[..., size:]
        if x.shape[0] == 1 < x.dim():  # of one example too, where vmap knows no bilinear
            product = torch.einsum("...i,kij,...j->...k", first, w, second)
            return product if b is None else product + b
        return F.bilinear(first, second, w, b)

    # Side by side, the two inputs are one: squared, signed and cut into examples together.
    x = torch.cat([input1, input2], -1)
    return LinearOp(apply, x, weight, bias, None, 0, example=0 if x.dim() > 1 else None)
