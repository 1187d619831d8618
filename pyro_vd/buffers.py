"""Buffers of the plain modules beside a BayesianModule: those that model or guide call by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from pyro.infer.autoguide.guides import AutoGuide
from torch import nn

from pyro_vd.module import BayesianModule
from pyro_vd.references import referenced_modules
from pyro_vd.rollback import note_buffers


def keep_plain_buffers(*programs: Callable) -> None:
    """Have the buffers of the plain modules of model and guide put back where a run is undone; call it before the run.

    A :class:`BayesianModule` looks after its own.
    """
    for program in programs:
        try:
            known = _KNOWN.get(program)
        except TypeError:  # an object that cannot be a key
            known = None
        for one in _look_for(program) if known is None else known:
            module = one()
            if module is not None and module.training:
                note_buffers(module)


def _look_for(program: Callable) -> list[ref[nn.Module]]:
    """The modules with buffers that a program refers to, outside of every BayesianModule; kept for the next time."""
    found = [module for root in referenced_modules(program) for module in root.modules()]
    owned = {part for module in found if isinstance(module, (BayesianModule, AutoGuide)) for part in module.modules()}
    plain = [ref(module) for module in dict.fromkeys(found) if module not in owned and module._buffers]
    try:
        _KNOWN[program] = plain
    except TypeError:
        pass
    return plain


# References to the modules, which may hold the program: nothing here keeps either alive.
_KNOWN: WeakKeyDictionary[Any, list[ref[nn.Module]]] = WeakKeyDictionary()
