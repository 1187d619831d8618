"""Which row of a table the code of a net keeps fixed: ``padding_idx`` of ``F.embedding`` and ``F.embedding_bag``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import nn

from pyro_vd.reading.values import Value

_UNKNOWN = object()


class PaddingRows:
    """The rows that look-ups of parameters keep fixed, as the code of a net is read."""

    def __init__(self) -> None:
        self._rows: dict[str, set[Any]] = {}  # by parameter: a row, None for a use of all rows, or unknown

    def note(self, function: Any, weight: Value, named: list[tuple[str, Value]]) -> None:
        """Note that an operation of the table multiplies data by a weight; ``named`` are its arguments."""
        row: Any = None
        if function in (F.embedding, F.embedding_bag):
            given = next((value for name, value in named if name == "padding_idx"), Value(exactly=(None,)))
            row = given.exactly[0] if given.exactly else _UNKNOWN
            if row is not None and not (weight.exactly and type(row) is int):
                row = _UNKNOWN  # rows of a tensor that is made of the parameter may be others
        for parameter in weight.parameters:
            self._rows.setdefault(parameter, set()).add(row)

    def note_layer(self, layer: nn.Module, names: Mapping[nn.Parameter, str]) -> None:
        """Note a call of a layer of PyTorch, which may hold the same parameter."""
        for parameter in layer._parameters.values():
            if parameter is not None and parameter in names:
                self._rows.setdefault(names[parameter], set()).add(getattr(layer, "padding_idx", None))

    def of_all(self, parameters: Iterable[str], owner: str) -> dict[str, int]:
        """The row that every use of a parameter keeps fixed, where there is one: what another use trains is trained.

        It warns of rows that some use keeps fixed and that stay random all the same.

        Args:
            parameters: names of the random parameters.
            owner: name of the BayesianModule, for the warning.
        """
        found, lost = {}, []
        for name in parameters:
            rows = self._rows.get(name, set())
            if None in rows or not rows:
                continue
            row, *others = rows
            if others or row is _UNKNOWN:
                lost.append(name)
            else:
                found[name] = row
        if lost:
            warnings.warn(
                f"BayesianModule {owner!r}: expected look-ups whose fixed row can be read in the code of the net, got "
                f"F.embedding or F.embedding_bag of {lost} with a padding_idx that cannot, or with several: the "
                "padding row is random, as all rows are, without a gradient from the data. Write nn.Embedding(..., "
                "padding_idx=...), or padding_idx=self.padding_idx with the parameter itself as the weight",
                stacklevel=5,
            )
        return found
