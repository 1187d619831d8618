"""Parameters that a first run makes, which an optimizer made before it does not train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


class MadeLate:
    """Parameters made in a first run beside others that were there, until a step shows whether they are trained.

    Args:
        met: all parameters after the run, by name.
        before: those that were there before it.
    """

    def __init__(self, met: Mapping[str, Tensor], before: Iterable[Tensor]):
        known = set(before)
        versions = [(name, one, one._version) for name, one in met.items() if one.requires_grad]
        self._made = [entry for entry in versions if entry[1] not in known]
        self._others = [entry for entry in versions if entry[1] in known]

    def left_alone(self) -> list[str]:
        """Names of those that a step has not changed, while it changed others; once, after the first such step."""
        if not self._made or not any(one._version != version for _, one, version in self._others):
            return []
        names = [name for name, one, version in self._made if one._version == version]
        self.forget()
        return names

    def forget(self) -> None:
        """Say nothing from here on."""
        self._made = self._others = []


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
