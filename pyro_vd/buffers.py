"""Buffers of the plain modules beside a BayesianModule: those that model or guide call by themselves."""

from __future__ import annotations

from collections.abc import Callable

from pyro.infer.autoguide.guides import AutoGuide
from torch import nn

from pyro_vd.module import BayesianModule
from pyro_vd.references import referenced_modules
from pyro_vd.rollback import note_buffers


def keep_plain_buffers(*programs: Callable) -> None:
    """Have the buffers of the plain modules of model and guide put back where a run is undone; call it before the run.

    A :class:`BayesianModule` looks after its own.
    """
    seen: set[nn.Module] = set()
    left: list[nn.Module | None] = [module for program in programs for module in referenced_modules(program)]
    while left:
        module = left.pop()
        if module is None or module in seen or isinstance(module, (BayesianModule, AutoGuide)):
            continue
        seen.add(module)
        left += module._modules.values()
        if module._buffers and module.training:
            note_buffers(module)
