"""The loss as a torch module, for training with torch.optim."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyro import poutine
from torch import Tensor, nn

from pyro_vd.checks import check_gradient

if TYPE_CHECKING:
    from pyro_vd.elbo import TraceVD_ELBO


class LossModule(nn.Module):
    """What ``TraceVD_ELBO()(model, guide)`` returns: its call is the loss, its parameters are to be trained.

    A model or guide that is a function contributes the modules it refers to (by closure or global name).
    Automatic guides make their parameters at their first call: call the guide, or this module, once
    before making the optimizer.

    Args:
        model, guide: Pyro model and guide, modules or functions.
        elbo: the loss.

    Raises:
        ValueError: from the call, where a term of the loss is NaN or infinite, naming it.

    Example:
        >>> import torch
        >>> from pyro_vd import TraceVD_ELBO
        >>> loss = TraceVD_ELBO()(torch.nn.Identity(), torch.nn.Linear(2, 3))
        >>> [tuple(p.shape) for p in loss.parameters()]
        [(3, 2), (3,)]
    """

    def __init__(self, model: Callable, guide: Callable, elbo: TraceVD_ELBO):
        super().__init__()
        self.elbo = elbo
        self.callables = (model, guide)
        self.referenced = nn.ModuleList(module for fn in (model, guide) for module in referenced_modules(fn))
        self._seen = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._seen:
            loss = self.elbo.checked_terms(*self.callables, *args, **kwargs).loss
            if loss.requires_grad:
                check_gradient(loss, dict(self.named_parameters()), args, kwargs)
            return loss
        capture: Any
        with poutine.trace(param_only=True) as capture:
            loss = self.elbo.checked_terms(*self.callables, *args, **kwargs).loss
        own = {id(parameter) for parameter in self.parameters()}
        others = [name for name, site in capture.trace.nodes.items() if id(site["value"].unconstrained()) not in own]
        if others:
            warnings.warn(
                f"expected every parameter in .parameters() of this loss, got others in model or guide: {others}; an "
                "optimizer over .parameters() does not train them. Write model and guide as pyro.nn.PyroModule, or "
                "train with pyro.infer.SVI",
                stacklevel=2,
            )
        if loss.requires_grad:
            check_gradient(loss, dict(self.named_parameters()), args, kwargs)
        self._seen = True
        return loss


def referenced_modules(fn: Callable) -> list[nn.Module]:
    """The module itself, or those a function refers to."""
    fn = poutine.unwrap(fn)  # what handlers such as lrt are wrapped around
    if isinstance(fn, nn.Module):
        return [fn]
    function = inspect.unwrap(fn)
    if inspect.ismethod(function) and isinstance(function.__self__, nn.Module):
        return [function.__self__]
    if not inspect.isfunction(function):
        return []
    names = inspect.getclosurevars(function)
    return [value for value in (*names.nonlocals.values(), *names.globals.values()) if isinstance(value, nn.Module)]
