"""The first of Adam's betas as an input of programs where a scheduler changes it, as OneCycleLR does in every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer


class Betas:
    """Those of all groups of parameters; constants of programs until the first of them changes.

    Attributes:
        tensors: for each group the first beta, 0-dim; empty while they are constants.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._seen: list[Any] = []  # the betas of each group, when they were last looked at

    def look(self, optimizers: list[Optimizer], groups: list[dict]) -> tuple[list[dict], tuple[str, ...]]:
        """The options that programs hold, and the names of those that they read."""
        betas: list[Any] = [group.get("betas") for group in groups]
        known = all(type(one) in (Adam, AdamW) for one in optimizers) and all(map(_are_floats, betas))
        if not known or len(self.tensors) != len(groups):
            # Changed since, or before: by a scheduler that starts elsewhere, or in a state that was loaded.
            firsts = {one.defaults["betas"][0] for one in optimizers} if known else set()
            moved = known and (self._seen not in ([], betas) or any(one[0] not in firsts for one in betas))
            devices = [group["params"][0].device for group in groups if moved]
            self.tensors = [torch.zeros((), dtype=torch.float64, device=device) for device in devices]
        self._seen = betas
        if not self.tensors:
            return groups, ()
        return [*groups, {"second betas": [one[1] for one in betas]}], ("betas",)

    def now(self, groups: list[dict]) -> list[Tensor]:
        """The tensors, with the values of now.

        Raises:
            ValueError: one that is no number in [0, 1); a second beta that has changed too.
        """
        for tensor, group, seen in zip(self.tensors, groups, self._seen, strict=False):
            betas = group["betas"]
            if not (_are_floats(betas) and 0.0 <= betas[0] < 1.0) or betas[1:] != seen[1:]:
                raise ValueError(
                    f"optim: expected betas of which the first may change, in [0, 1), got {betas} after {seen}; "
                    "nothing has been changed. Make a new CompiledSVI after changing the second"
                )
            tensor.fill_(betas[0])
        return self.tensors


def _are_floats(betas: Any) -> bool:
    return isinstance(betas, tuple) and len(betas) == 2 and all(isinstance(one, float) for one in betas)
