"""Where an automatic guide keeps what it learns: as ``guide.<quantity>.<site>``, a parameter or a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vd._pyro import adopt_stored_value, parameters_are_seen


def quantities(guide: nn.Module) -> set[str]:
    """Names of the quantities of a weight: "locs", "log_sigma2s" and so on."""
    return {name for name, child in guide.named_children() if type(child) is PyroModule}


def store(guide: nn.Module, quantity: str, site: str, value: Tensor, learnable: bool = True) -> None:
    """Keep ``value`` as a parameter, or as a buffer."""
    if quantity not in quantities(guide):
        setattr(guide, quantity, PyroModule())
    owner = getattr(guide, quantity)
    *path, name = site.split(".")
    for part in path:
        if not hasattr(owner, part):
            setattr(owner, part, PyroModule())
        owner = getattr(owner, part)
    if name in owner._parameters or name in owner._buffers:
        delattr(owner, name)  # from Pyro's store too, or an optimizer would go on training it
    if learnable:
        owner.register_parameter(name, nn.Parameter(value))  # setattr would take the value in Pyro's store
    else:
        owner.register_buffer(name, value)


def read(guide: Any, quantity: str, site: str) -> Tensor:
    """The parameter or buffer. Within a call of the guide, a parameter is one of Pyro's store too."""
    owner, name = _owner(guide, quantity, site)
    parameter = owner._parameters.get(name)
    full_name = f"{guide._pyro_name}.{quantity}.{site}"
    if parameter is not None and (guide._pyro_context.active or full_name in pyro.get_param_store()):
        adopt_stored_value(full_name, parameter)
    if parameter is not None and not parameter.requires_grad:
        return parameter  # frozen by the user: a step must not meet it, or its momentum would go on moving it
    if type(parameter) is nn.Parameter and not name.endswith("_unconstrained"):
        if not parameters_are_seen():
            return parameter
        if guide._pyro_context.active and not pyro.settings.get("module_local_params"):
            pyro.param(full_name, parameter)
            return parameter  # as getattr, which is slow in a PyroModule
    return getattr(owner, name)


def raw(guide: nn.Module, quantity: str, site: str) -> Tensor:
    """The parameter or buffer, without Pyro."""
    owner, name = _owner(guide, quantity, site)
    return owner._parameters[name] if name in owner._parameters else owner._buffers[name]


def tables(guide: nn.Module, site: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The table of each parameter and buffer of a weight site, of the module that has it, and its name there."""
    for quantity in sorted(quantities(guide)):
        try:
            owner, name = _owner(guide, quantity, site)
        except KeyError:  # another site has this quantity
            continue
        yield from ((table, name) for table in (owner._parameters, owner._buffers) if name in table)


def _owner(guide: nn.Module, quantity: str, site: str) -> tuple[Any, str]:
    owner: Any = guide
    *path, name = site.split(".")
    for part in (quantity, *path):
        owner = owner._modules[part]  # not by getattr, which is slow in a PyroModule
    return owner, name
