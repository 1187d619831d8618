"""Which modules and parameters a net has: looked up anew only where that has changed; a step has no time for it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import nn

from pyro_vd.held import modules_of

_PARAMETERS, _MODULES = itemgetter("_parameters"), itemgetter("_modules")
_COMPILED = attrgetter("_compiled_call_impl")
_LISTS = ("named_parameters", "named_modules", "_named_members")  # of nn.Module, which say what a net has


class Layout:
    """The modules and parameters of a net.

    It rests on nothing but the tables of submodules and parameters of every module, by identity, the types of modules,
    and what ``torch.compile`` has put there. What else may change, ``requires_grad``, hooks, buffers, device and type
    of a parameter, is not in it.

    Attributes:
        net: the net.
        modules: the net and every module in it, each once, but ScriptModules.
        parameters: by name, as ``net.named_parameters()`` has them.
        places: the modules that hold a parameter, each with the name under which it does.
        is_compiled: whether ``torch.compile`` has compiled one of the modules.
    """

    def __init__(self) -> None:
        self.net: nn.Module | None = None

    def of(self, net: nn.Module) -> Layout:
        """This object, as the net is now."""
        if self.net is not net or not self._is_unchanged():
            self._look(net)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, ()  # of a copy of the net, which has other modules

    def _look(self, net: nn.Module) -> None:
        self.net = None
        found = modules_of(net)
        self.modules = [module for module in found if not isinstance(module, torch.jit.ScriptModule)]
        self.parameters: dict[str, nn.Parameter] = dict(net.named_parameters())
        self.places: dict[Any, list[tuple[nn.Module, str]]] = {}
        for module in self.modules:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    self.places.setdefault(parameter, []).append((module, key))
        self.is_compiled = any(_COMPILED(m) is not None or "_orig_mod" in m._modules for m in self.modules)
        self._tables = [table for module in self.modules for table in (module._parameters, module._modules)]
        self._names = self._names_now()
        self._objects = tuple(self._objects_now())
        plain = all(isinstance(parameter, nn.Parameter) for parameter in self.places)  # no values of another call
        usual = all(getattr(type(m), name) is getattr(nn.Module, name) for m in self.modules for name in _LISTS)
        self._is_known = plain and usual and len(self.modules) == len(found)
        self.net = net

    def _is_unchanged(self) -> bool:
        return (
            self._is_known
            and all(map(is_, self._objects, self._objects_now()))
            and self._names == self._names_now()  # and so as many objects as before
        )

    def _objects_now(self) -> Iterable[Any]:
        return chain(
            map(type, self.modules),
            map(_COMPILED, self.modules),
            map(_PARAMETERS, map(vars, self.modules)),
            map(_MODULES, map(vars, self.modules)),
            chain.from_iterable(map(dict.values, self._tables)),
        )

    def _names_now(self) -> list[str]:
        return list(chain.from_iterable(map(dict.keys, self._tables)))
