"""Rules of convolutions and of transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyro_vd.estimators import LinearOp
from pyro_vd.operations.table import enter

_POSITIONS = "covariance between the positions of an example"


def _register_conv(operation: Callable[..., Tensor], spatial: int) -> None:
    @enter(operation, kind="approximate", drops=_POSITIONS)
    def conv(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
             dilation: Any = 1, groups: int = 1) -> LinearOp:  # fmt: skip
        """Exact mean and variance at every position; the covariance of positions, which share weights, is dropped."""

        def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            return operation(x, w, b, stride, padding, dilation, groups)

        return _convolution(apply, spatial, input, weight, bias, units=1, outs=0)


def _register_conv_transpose(operation: Callable[..., Tensor], spatial: int) -> None:
    @enter(operation, kind="approximate", drops=_POSITIONS)
    def conv_transpose(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
                       output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> LinearOp:  # fmt: skip
        """As a convolution, with the input units in dimension 0 of the weight and the output units in dimension 1."""

        def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            return operation(x, w, b, stride, padding, output_padding, groups, dilation)

        return _convolution(apply, spatial, input, weight, bias, units=0, outs=1)


def _convolution(
    apply: Callable[..., Tensor], spatial: int, x: Tensor, weight: Tensor, bias: Tensor | None, units: int, outs: int
) -> LinearOp:
    axis = -spatial - 1
    example = 0 if x.dim() == spatial + 2 else None
    return LinearOp(apply, x, weight, bias, units, outs, axis, axis, example, positions=spatial)


for _spatial, _operation in enumerate((F.conv1d, F.conv2d, F.conv3d), start=1):
    _register_conv(_operation, _spatial)
for _spatial, _operation in enumerate((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), start=1):
    _register_conv_transpose(_operation, _spatial)
