"""Labels of channels: which must go or stay together, and which are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNIFORM = 1e-6  # relative: a constant that is computed at several positions may round otherwise at each


class Labels:
    """Numbers of channels, joined into groups; a group is needed as soon as one of its channels is."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._needed: set[int] = set()

    def new(self, count: int) -> list[int]:
        """New channels, each a group of its own."""
        added = list(range(len(self._parents), len(self._parents) + count))
        self._parents += added
        return added

    def join(self, *groups: Sequence[int]) -> None:
        """Join the first channels of all groups into one, then the second, and so on."""
        for labels in zip(*groups, strict=True):
            first = self._find(labels[0])
            for label in labels[1:]:
                other = self._find(label)
                self._parents[other] = first
                if other in self._needed:
                    self._needed.add(first)

    def need(self, labels: Iterable[int]) -> None:
        self._needed |= {self._find(label) for label in labels}

    def are_needed(self, labels: Iterable[int]) -> list[bool]:
        return [self._find(label) in self._needed for label in labels]

    def _find(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label


@dataclass(frozen=True, eq=False)
class Value:
    """An activation: the axis of its channels, their labels, which are constant, and the constants."""

    axis: int
    labels: list[int]
    constant: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Product:
    """A use of a weight: what it multiplies, its dimensions of outputs and inputs, and which outputs need which inputs.

    ``live`` has shape (outputs, inputs); a constant input that the bias can take is not needed.
    """

    weight: Tensor
    bias: Tensor | None
    value: Value
    rows: int
    columns: int
    live: Tensor


def value_of(output: Tensor, axis: int, labels: list[int], constant: Tensor) -> Value:
    """Of these channels, those that may be ``constant`` and are the same at all positions of ``output``."""
    channels = output.detach().movedim(axis, 0).unsqueeze(-1).flatten(1)
    values = channels[:, 0] if channels.shape[1] else channels.new_zeros(len(labels))
    near = (channels - values[:, None]).abs() <= UNIFORM * (1 + values.abs()[:, None])
    return Value(axis, labels, constant & near.all(1).cpu(), values.clone().cpu())


def reachable(read: Tensor) -> Tensor:
    """Which units each unit (row) reads, directly or through others; each reads itself."""
    found = read | torch.eye(len(read), dtype=torch.bool)
    for _ in range(len(read).bit_length()):
        found = (found.float() @ found.float()) > 0
    return found
