"""Parameters that a first run makes, which an optimizer made before it does not train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vd._torch import has_values

FEW = 16  # values of a parameter that are compared


class MadeLate:
    """Parameters made in a first run beside others that were there, until a step shows whether they are trained.

    Args:
        met: all parameters after the run, by name.
        before: those that were there before it.
    """

    def __init__(self, met: Mapping[str, Tensor], before: Iterable[Tensor]):
        known = set(before)
        states = [(name, one, _state(one)) for name, one in met.items() if one.requires_grad]
        self._made = [entry for entry in states if entry[1] not in known]
        self._others = [entry for entry in states if entry[1] in known]

    def left_alone(self) -> list[str]:
        """Names of those that a step has not changed, while it changed others; once, after the first such step."""
        if not self._made or not has_values() or not any(_has_moved(one, state) for _, one, state in self._others):
            return []
        names = [name for name, one, state in self._made if one.requires_grad and not _has_moved(one, state)]
        self.forget()
        return names

    def forget(self) -> None:
        """Say nothing from here on."""
        self._made = self._others = []


def _state(parameter: Tensor) -> tuple[int, Tensor]:
    """The version of a parameter, and a few of its values: an optimizer that writes to ``.data`` changes no version."""
    return parameter._version, parameter.detach().flatten()[:FEW].clone()


def _has_moved(parameter: Tensor, state: tuple[int, Tensor]) -> bool:
    version, values = state
    if parameter._version != version or parameter.is_meta:
        return parameter._version != version
    return not torch.equal(parameter.detach().flatten()[:FEW], values.to(parameter.device, parameter.dtype))


def untrained(names: list[str], maker: str, owner: str) -> str:
    """The warning about parameters that a step has left alone."""
    return (
        f"expected an optimizer of every parameter of {owner}, got a step that moved others and not {names}, "
        f"which {maker} has made: the optimizer was made before it and does not train them. Call the "
        "loss, or the guide, once before making the optimizer"
    )


def forget_late(modules: Iterable[Any]) -> None:
    """Have guides say nothing of parameters that they have made, for a loss that looks after them itself."""
    for module in modules:
        late = vars(module).get("_late")
        if isinstance(late, MadeLate):
            late.forget()
