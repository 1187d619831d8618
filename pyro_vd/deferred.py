"""A tensor that is computed when something asks for its value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

T: Any = Tensor

_KNOWN = {getattr(T, name).__get__ for name in ("shape", "dtype", "device", "ndim")} | {T.dim, T.size, T.numel}
_DEFERRED = {T.reshape, T.sum, T.mul, T.__mul__, T.__rmul__}  # what distributions and Pyro do to a log_prob


class Deferred(Tensor):
    """What ``compute()`` returns, computed when an operation asks for more than its shape; sums of it are deferred too.

    Pyro's ELBOs have the log_prob of every weight evaluated, and those with an analytic KL make no use of it.

    Args:
        compute: returns the tensor.
        shape, dtype, device: of the tensor.
    """

    _compute: Callable[[], Tensor]
    _with_gradient: bool

    @staticmethod
    def __new__(
        cls, compute: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Deferred:
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)  # type: ignore
        new._compute, new._with_gradient = compute, torch.is_grad_enabled()
        return new

    @cached_property
    def value(self) -> Tensor:
        """The tensor itself, with its gradient if gradients were enabled when it was deferred."""
        with torch.set_grad_enabled(self._with_gradient):
            return self._compute()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)

        def now() -> Any:
            return func(*tree_map(_value, args), **tree_map(_value, kwargs))

        if func not in _DEFERRED:
            return now()
        like = func(*tree_map(_shape, args), **tree_map(_shape, kwargs))
        return cls(now, like.shape, like.dtype, args[0].device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(
            f"expected an operation that PyTorch dispatches on the type of its arguments, got {func} from below that "
            "layer, on the log_prob of a random weight; write trace.nodes[site]['log_prob'].value"
        )


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, Deferred) else argument


def _shape(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return torch.empty(argument.shape, dtype=argument.dtype, device="meta")
