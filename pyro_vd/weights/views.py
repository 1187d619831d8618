"""Which tensor functions on a random weight are metadata, and which are views: linear maps of its elements.

A view takes each element of its result from one element of the weight, at most once, times a constant:
its mean is the view of the mean and its variance the view (of the constant squared) of the variance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

T: Any = Tensor

METADATA = {
    getattr(T, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_meta", "is_sparse",
                 "is_quantized", "is_cpu", "itemsize", "nbytes", "is_leaf", "requires_grad", "grad_fn", "is_nested",
                 "is_mkldnn")  # fmt: skip
} | {
    T.size, T.dim, T.numel, T.nelement, T.ndimension, T.__len__, T.is_floating_point, T.is_complex, T.element_size,
    T.stride, T.is_contiguous, T.storage_offset, T.get_device, torch.numel, torch.is_floating_point, torch.is_complex,
}  # fmt: skip

TRANSPOSES = {
    T.T.__get__, T.mT.__get__, T.t, torch.t, T.transpose, torch.transpose, T.swapaxes, torch.swapaxes,
    T.swapdims, torch.swapdims, T.adjoint, torch.adjoint,
}  # fmt: skip

CASTS = {T.to, T.float, T.double, T.half, T.bfloat16, T.type_as, T.cpu, T.cuda}

_SHAPE_VIEWS = CASTS | {
    T.permute, torch.permute, T.movedim, torch.movedim, T.reshape, torch.reshape, T.view, T.view_as, T.reshape_as,
    T.flatten, torch.flatten, T.unflatten, torch.unflatten, T.ravel, torch.ravel, T.squeeze, torch.squeeze,
    T.unsqueeze, torch.unsqueeze, T.contiguous, T.narrow, torch.narrow, T.select, torch.select, T.chunk,
    torch.chunk, T.split, torch.split, T.tensor_split, torch.tensor_split, T.unbind, torch.unbind, T.flip,
    torch.flip, T.detach, torch.detach, T.clone, torch.clone, T.diagonal, torch.diagonal,
}  # fmt: skip

COMMUTATIVE = {torch.mul, torch.multiply, T.mul, T.multiply, T.__mul__, T.__rmul__}

SCALINGS = COMMUTATIVE | {
    torch.div, torch.divide, torch.true_divide, T.div, T.divide, T.true_divide, T.__truediv__,
    torch.neg, torch.negative, T.neg, T.negative, T.__neg__,
}  # fmt: skip


def is_view(function: Any, weight: Tensor, args: tuple, kwargs: dict) -> bool:
    """Whether ``function(weight, *args, **kwargs)`` is a view of the weight."""
    if any(isinstance(arg, type(weight)) for arg in (*args, *kwargs.values())):
        return False  # a random weight times another is not linear in either
    if any(isinstance(arg, torch.dtype) and not arg.is_floating_point for arg in (*args, *kwargs.values())):
        return False
    if function in SCALINGS:
        return not kwargs and all(_keeps_shape(arg, weight) for arg in args)
    if function is T.__getitem__:
        index = args[0] if isinstance(args[0], tuple) else (args[0],)
        return all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in index)
    return function in TRANSPOSES or function in _SHAPE_VIEWS


def repeats(weight: Tensor, factors: tuple) -> tuple[int, ...] | None:
    """The shape of a factor that would repeat elements of the weight; None where none does."""
    for factor in factors:
        if isinstance(factor, Tensor) and not isinstance(factor, type(weight)) and not _keeps_shape(factor, weight):
            return tuple(factor.shape)
    return None


def _keeps_shape(factor: Any, weight: Tensor) -> bool:
    """Whether multiplying the weight by ``factor`` repeats none of its elements."""
    if not isinstance(factor, Tensor):
        return isinstance(factor, (int, float))
    try:
        return torch.broadcast_shapes(factor.shape, weight.shape) == weight.shape
    except RuntimeError:
        return False
