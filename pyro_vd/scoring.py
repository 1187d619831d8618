"""A log_prob of a random weight: a tensor that is computed when something asks for its value."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vd._torch import DisableTorchFunctionSubclass, new_wrapper, tree_map
from pyro_vd.weights import RandomWeight

T: Any = Tensor

_METADATA = {getattr(T, name).__get__ for name in ("dtype", "device", "ndim")} | {T.dim, T.size, T.numel}
_PRODUCTS = {T.mul, T.__mul__, T.__rmul__}


class Deferred(Tensor):
    """What ``compute()`` returns, computed when an operation asks for more than its shape.

    Pyro's ELBOs evaluate the log_prob of every weight, and those with an analytic KL do not use it. What
    distributions and Pyro do to it, sums and a scale, is deferred too.

    Args:
        compute: returns the tensor.
        shape, dtype, device: of the tensor.
    """

    shape: torch.Size = property(lambda self: self._shape)  # type: ignore[assignment]
    _shape: torch.Size
    _compute: Callable[[], Tensor]
    _with_gradient: bool

    @staticmethod
    def __new__(
        cls, compute: Callable[[], Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Deferred:
        new = new_wrapper(cls, shape, dtype, device)
        new._compute, new._shape, new._with_gradient = compute, torch.Size(shape), torch.is_grad_enabled()
        return new

    @cached_property
    def value(self) -> Tensor:
        """The tensor itself, with its gradient if gradients were enabled when it was deferred."""
        with torch.set_grad_enabled(self._with_gradient):
            return self._compute()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)

        def now() -> Any:
            return func(*map(_value, args), **{name: _value(one) for name, one in kwargs.items()})

        shape = None if kwargs or not isinstance(args[0], cls) else _shape_after(func, *args)
        return now() if shape is None else cls(now, shape, args[0].dtype, args[0].device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(
            f"expected an operation that PyTorch dispatches on the type of its arguments, got {func} from below that "
            "layer, on the log_prob of a random weight; write trace.nodes[site]['log_prob'].value"
        )


def deferred_log_prob(distribution: Distribution, value: Tensor) -> Deferred | None:
    """``distribution.log_prob`` of a draw of a random weight, where Pyro evaluates those of a trace; None elsewhere."""
    if not isinstance(value, RandomWeight) or not value.state.is_scoring():
        return None
    shape, loc = distribution.batch_shape, value.loc
    shape = shape if shape == loc.shape else torch.broadcast_shapes(shape, loc.shape)
    return Deferred(lambda: distribution.log_prob(value.scored_draw()), shape, loc.dtype, loc.device)


def _shape_after(func: Any, tensor: Tensor, *rest: Any) -> torch.Size | None:
    """The shape of ``func(tensor, *rest)`` where that is a sum, its preparation or a scale; None elsewhere."""
    if func is T.sum and rest == ():
        return torch.Size()
    if func is T.sum and rest == (-1,):
        return tensor.shape[:-1]
    if func is T.reshape and isinstance(rest[0], tuple):  # the last dimensions as one
        kept = len(rest[0]) - 1
        rows = tensor.shape[:kept]
        return torch.Size((*rows, math.prod(tensor.shape[kept:]))) if rest == ((*rows, -1),) else None
    if func in _PRODUCTS and (isinstance(rest[0], (int, float)) or (isinstance(rest[0], Tensor) and not rest[0].dim())):
        return tensor.shape
    return None


def _value(argument: Any) -> Any:
    """An argument with values in the place of what is deferred, in lists and dicts too."""
    return tree_map(_value_of_leaf, argument) if isinstance(argument, (list, tuple, dict)) else _value_of_leaf(argument)


def _value_of_leaf(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Deferred) else leaf
