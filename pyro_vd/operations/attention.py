"""Attention: its projections are products like any other, inside a function of PyTorch that hides them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyro_vd._torch import visible
from pyro_vd.operations.table import enter


@enter(
    F.multi_head_attention_forward,
    weight=("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight", "in_proj_bias",
            "out_proj_bias"),
    kind="approximate",
    drops="covariance between tokens of an example",
)  # fmt: skip
def multi_head_attention_forward(*args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Each projection, packed or separate, is exact for each token; covariance between tokens of an example is dropped.

    For ``nn.MultiheadAttention`` and the transformer layers, in training and evaluation alike: their fast
    paths are skipped for tensor subclasses. "per_example" and "flipout" have one noise for each example in the input
    projections, and one for each token in the output projection, which PyTorch computes on rows without an example.
    """
    return partial(_attention, *args, **kwargs)


def _linear(input: Tensor, weight: Any, bias: Any = None) -> Tensor:
    """Attention works on (token, example, unit); a product has its examples first."""
    if input.dim() != 3:
        return F.linear(input, weight, bias)
    return F.linear(input.transpose(0, 1), weight, bias).transpose(0, 1).contiguous()  # it is viewed next


_functional: Any = F  # its private functions too
_attention = visible(
    F.multi_head_attention_forward,
    linear=_linear,
    _in_projection_packed=visible(_functional._in_projection_packed, linear=_linear),
    _in_projection=visible(_functional._in_projection, linear=_linear),
)
