"""Applying a ``torch.autograd.Function`` without looking its signature up in every call."""

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
