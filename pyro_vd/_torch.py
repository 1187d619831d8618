"""What autograd functions are made with: applying one without looking its signature up, and 1 / x at 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def applied(function: type[Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)``, for a function with ``setup_context``.

    ``apply`` inspects the signature of ``forward`` each time, which takes longer than an operation on a small tensor.
    Where no transform of ``torch.func`` is active, nothing but the filling in of defaults is lost without it.
    """
    # A view: a Function looks at the tensor itself, which torch function modes have not met.
    inputs = tuple(one.view_as(one) if isinstance(one, Tensor) else one for one in inputs)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    return super(Function, function).apply(*inputs)  # type: ignore[misc]


def reciprocal_or_zero(x: Tensor) -> Tensor:
    """``1 / x``, but 0 at 0; in few passes over memory, which masks would not be."""
    return x.sign().div_(at_least_tiny(x.abs()))


def at_least_tiny(x: Tensor) -> Tensor:
    """``x``, written over: at least the smallest normal number."""
    return x.clamp_min_(torch.finfo(x.dtype).tiny)
