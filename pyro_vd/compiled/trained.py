"""The parameters of a CompiledSVI, and whether they are still those of its first step."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vd.compiled.loss_program import Evaluation
from pyro_vd.compiled.optimizers import StepOptimizer


class TrainedParameters(dict[str, Tensor]):
    """The unconstrained parameters that the first step met, by name.

    Args:
        evaluation, optimizer: the loss, whose modules are watched, and what updates the parameters.
    """

    def __init__(self, evaluation: Evaluation, optimizer: StepOptimizer):
        super().__init__()
        self._evaluation, self._optimizer = evaluation, optimizer
        self._known: tuple[list[Tensor], list[Any]] = ([], [])

    def check(self, met: dict[str, Tensor]) -> None:
        """Raise where a step has met other parameters than the first; those of the first are taken in."""
        if not self:
            self.update(met)
        added = [name for name, parameter in met.items() if self.get(name) is not parameter]
        gone = [name for name in self if name not in met]
        if added or gone:
            raise ValueError(
                f"expected the parameters of the first step, got new ones {added}, and without {gone}; make a new "
                "CompiledSVI after changing them, or step with pyro.infer.SVI where they come and go"
            )

    def remember(self) -> None:
        """Changes are told from here on."""
        self._known = self._held()

    def changes(self) -> tuple[bool, bool]:
        """Whether any tensor is another than before, and no program holds any more; whether Pyro's store has others.

        The store has others where it was loaded or cleared, which an eager step takes in.

        Raises:
            ValueError: another dtype, device or number of parameters than in the first step.
        """
        (tensors, places), (known, known_places) = held, _ = self._held(), self._known
        for name, now, then in zip(self, places, known_places, strict=True):
            if now[:2] != then[:2]:
                raise ValueError(
                    f"parameter {name!r}: expected {then[0]} on {then[1]} as in the first step, got {now[0]} on "
                    f"{now[1]}; make a new CompiledSVI after .to(...)"
                )
        store = pyro.get_param_store()
        loaded = any(store._params.get(name) is not parameter for name, parameter in self.items())
        same = len(tensors) == len(known) and all(a is b for a, b in zip(tensors, known, strict=True))
        if same and places == known_places and not loaded:
            return False, False
        new = [t for t in tensors if isinstance(t, torch.nn.Parameter) and all(t is not other for other in known)]
        if new:
            raise ValueError(
                f"expected the parameters of the first step, got new ones of shapes {[tuple(p.shape) for p in new]} in "
                "the modules of model or guide; make a new CompiledSVI after changing them"
            )
        self._known = held
        return True, loaded

    def _held(self) -> tuple[list[Tensor], list[Any]]:
        """The tensors that the modules and the optimizer hold, and where those of the parameters lie."""
        tensors = [*self._evaluation.held(), *self._optimizer.state()]
        return tensors, [(p.dtype, p.device, p.data_ptr()) for p in self.values()]
