"""Functions that put a parameter beside data, without a product of the two that a weight has: of these nothing is said.

Of every other function that is not in the table of operations it is: ``torch.cdist(x, self.centres)``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

_SHAPES = (
    "to type type_as expand expand_as broadcast_to broadcast_tensors view view_as reshape reshape_as repeat tile "
    "repeat_interleave narrow unfold roll pad interpolate upsample split chunk flatten unflatten"
)
_ELEMENTWISE = (
    "add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow float_power addcmul "
    "addcdiv lerp where maximum minimum fmax fmin max min clamp clip clamp_min clamp_max hypot atan2 arctan2 logaddexp "
    "logaddexp2 copysign heaviside eq ne gt ge lt le equal allclose isclose logical_and logical_or logical_xor "
    "masked_fill masked_scatter prelu dropout truediv floordiv neg"
)
_JOINS = (
    "cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag meshgrid index_put index_copy "
    "index_fill index_add scatter scatter_add scatter_reduce slice_scatter select_scatter diagonal_scatter copy append "
    "extend sum print dict set list tuple zip chain isinstance"
)
_NORMS = "layer_norm batch_norm group_norm instance_norm rms_norm native_layer_norm native_batch_norm native_group_norm"
_BESIDE = frozenset(" ".join((_SHAPES, _ELEMENTWISE, _JOINS, _NORMS)).split())


def puts_beside(name: str) -> bool:
    """Whether a function of this name only adds, joins, scales, compares or selects."""
    return name.strip("_") in _BESIDE


def factors(function: Any, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that a function may multiply: all but masks and biases."""
    args = args[:3] if function is F.scaled_dot_product_attention else args  # the fourth is a mask
    return [*args, *(value for name, value in kwargs.items() if "mask" not in name and "bias" not in name)]


def name_of(function: Any) -> str:
    """The name of a function, for messages."""
    return str(getattr(function, "__name__", None) or type(function).__name__)
