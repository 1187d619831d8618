"""The parameters of a CompiledSVI, and whether they are still those of its first step."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from pyro_vd._pyro import store_tables
from pyro_vd.compiled.surroundings import Surroundings
from pyro_vd.module import BayesianModule

_HOOKS, _LATE_HOOKS = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")
_CURE = "make a new CompiledSVI after changing them"


class TrainedParameters:
    """The unconstrained parameters that are trained, in a fixed order.

    First those of the modules, the guide's and then the model's, as far as the guide does not sample them; then those
    that the first step met in Pyro's store besides.

    Attributes:
        tensors: the parameters.
        met: those that steps meet, by their names in Pyro's store; empty before the first step.
        expected: names and shapes in a state that was loaded before the first step has met any.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.met: dict[str, Tensor] = {}
        self.expected: dict[str, tuple[int, ...]] | None = None
        self._of_modules: dict[Tensor, str] = {}
        self._kinds: list[tuple[Any, ...]] = []

    def start(self, surroundings: Surroundings, stored: Iterable[str] = ()) -> None:
        """Begin with the parameters of the modules, and those that Pyro's store has under the names ``stored``."""
        self._of_modules = parameters_of(surroundings)
        table, *_ = store_tables()
        others = [table[name] for name in stored if name in table]
        self._set([*self._of_modules, *(p for p in others if p not in self._of_modules)])

    def named(self) -> list[tuple[str, Tensor]]:
        """The parameters by name: where they are in the modules, or their name in Pyro's store."""
        table, *_ = store_tables()
        names = {parameter: name for name, parameter in (*table.items(), *self.met.items())}
        return [(self._of_modules.get(p) or names.get(p, "?"), p) for p in self.tensors]

    def complete(self, met: dict[str, Tensor], surroundings: Surroundings, only_met: bool, is_fixed: bool) -> None:
        """Take in what the first step has met.

        Args:
            met: the parameters, by name.
            surroundings: after the loss was evaluated: a guide may have made its parameters in it.
            only_met: leave out the parameters of modules that were not met.
            is_fixed: an optimizer has been made already, of those that :meth:`start` found.

        Raises:
            ValueError: there are others, and the optimizer is made; others than those of a state that was loaded.
        """
        found = parameters_of(surroundings)
        others = [name for name, parameter in met.items() if parameter not in set(self.tensors)]
        if is_fixed and others:
            raise ValueError(
                "expected an optimizer of all parameters, got one that was made before the first step, without "
                f"{others}; call guide(*args) once before you ask for .optimizer or load a state, and write model and "
                "guide as pyro.nn.PyroModule where they call pyro.param"
            )
        shapes = {name: tuple(parameter.shape) for name, parameter in met.items()}
        if self.expected is not None and shapes != self.expected:
            raise ValueError(f"state: expected one of the parameters {shapes}, got one of {self.expected}")
        self.met, self.expected, self._of_modules = dict(met), None, found
        if not is_fixed:
            self._set(met.values() if only_met else [*found, *(p for p in met.values() if p not in found)])
        if only_met:
            self._of_modules = {p: "" for p in found}

    def all_of(self, surroundings: Surroundings) -> list[Tensor]:
        """All that a step may change: before the first step every parameter of the modules and of Pyro's store."""
        if self.met:
            return [*self.tensors, *self.met.values()]
        stored, *_ = store_tables()
        return [*self.tensors, *parameters_of(surroundings), *stored.values()]

    def have_hooks(self) -> bool:
        """Whether the user has hooks on a gradient, which eager steps call.

        Raises:
            ValueError: hooks that a backward pass calls when it has added a gradient: no step of CompiledSVI has one.
        """
        if any(map(_LATE_HOOKS, self.tensors)):
            name = next(name for name, parameter in self.named() if _LATE_HOOKS(parameter))
            raise ValueError(
                f"parameter {name!r}: expected no hook of register_post_accumulate_grad_hook, got one, which "
                "CompiledSVI would not call; write register_hook, or step with pyro.infer.SVI"
            )
        return any(map(_HOOKS, self.tensors))

    def check(self, met: dict[str, Tensor]) -> None:
        """Raise where a step has met other parameters than the first."""
        added = [name for name, parameter in met.items() if self.met.get(name) is not parameter]
        gone = [name for name in self.met if name not in met]
        frozen = [name for name in gone if not self.met[name].requires_grad]
        if frozen:
            self._refuse_frozen(frozen)
        if added or gone:
            raise ValueError(
                f"expected the parameters of the first step, got new ones {added}, and without {gone}; {_CURE}, or "
                "step with pyro.infer.SVI where they come and go"
            )

    def check_change(self, surroundings: Surroundings) -> bool:
        """Look at the parameters after something has changed; returns whether Pyro's store has other tensors.

        The store has others where it was loaded or cleared, which an eager step takes in.

        Raises:
            ValueError: other parameters than in the first step, or another dtype or device, or one that is frozen.
        """
        names = self._of_modules | {parameter: name for name, parameter in self.met.items()}
        for parameter, then in zip(self.tensors, self._kinds, strict=True):
            now, name = _kind(parameter), names.get(parameter, "?")
            if now[:2] != then[:2]:
                raise ValueError(
                    f"parameter {name!r}: expected {then[0]} on {then[1]} as in the first step, got {now[0]} on "
                    f"{now[1]}; make a new CompiledSVI after .to(...)"
                )
            if not parameter.requires_grad:
                self._refuse_frozen([name])
        found = parameters_of(surroundings)
        new = [parameter for parameter in found if parameter not in self._of_modules]
        gone = [names[p] for p in self._of_modules if p not in found]
        if new or gone:
            shapes = [tuple(parameter.shape) for parameter in new]
            raise ValueError(
                f"expected the parameters of the first step, got new ones of shapes {shapes} in the modules of model "
                f"or guide, and without {gone}; {_CURE}"
            )
        stored, *_ = store_tables()
        return any(stored.get(name) is not parameter for name, parameter in self.met.items())

    def _set(self, parameters: Iterable[Tensor]) -> None:
        self.tensors = list(parameters)
        self._kinds = [_kind(parameter) for parameter in self.tensors]

    @staticmethod
    def _refuse_frozen(names: list[str]) -> None:
        raise ValueError(
            f"parameter {names[0]!r}: expected the parameters of the first step to be trained, got "
            "requires_grad=False; make a new CompiledSVI after freezing a parameter"
        )


def parameters_of(surroundings: Surroundings) -> dict[Tensor, str]:
    """The trained parameters of all modules, with where they are.

    Without the weights of a BayesianModule, in whose place the guide puts its own.
    """
    weights: set[Tensor] = set()
    for module in surroundings.modules:
        if isinstance(module, BayesianModule):
            named = dict(module.net.named_parameters())
            weights |= {named[name] for name in module.weight_names if name in named}
    places: dict[Tensor, str] = {}
    for tensor, place in zip(surroundings.tensors, surroundings.places, strict=True):
        places.setdefault(tensor, place)  # before those of Pyro's store and of the optimizer
    own = (p for module in surroundings.modules for p in module._parameters.values() if p is not None)
    return {p: places.get(p, "?") for p in own if p.requires_grad and p not in weights}


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device
