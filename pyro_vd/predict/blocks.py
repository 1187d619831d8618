"""Runs of guide and model, one for each draw, many draws side by side; and runs that keep the likelihoods of a model.

The first draw runs as it is: it makes the parameters of a new guide, is checked by Pyro, and shows what a draw
weighs. The others run in blocks under ``torch.vmap``, each weight's draws one tensor; one by one where vmap cannot.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vd.common.predictions import check_cut
from pyro_vd.predict.pieces import Parts, as_one_draw, differ, joined, pieces_joined
from pyro_vd.predict.placeholders import BatchedNoise, BatchedSites, LargestResult, global_noise
from pyro_vd.predict.posteriors import WeightDraws, are_equal, fixed_posteriors

# Of the draws of one block together, in weights and activations. More does not make them faster.
BLOCK_BYTES = 2**25
# An operation holds its input, its output and some more.
_TENSORS_AT_A_TIME = 3


class Blocks(ABC):
    """What a model has at draws of its guide.

    Args:
        model, guide: Pyro model; the guide under the handlers of the mode.
        call: arguments of the guide.
        pieces, lengths: the same in pieces for the model, and the number of examples in each.
        coherent: draw the guide once a draw for all pieces; otherwise once for every piece.
        constant: a coherent guide whose values are the same in every draw, if two runs of it agree.
        by_rows: the guide of :func:`guide_of_one_row`, for blocks of draws of which no value of the guide is kept.
        caller: the public function, for errors.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        call: tuple[tuple, dict],
        pieces: list[tuple[tuple, dict]],
        lengths: list[int],
        coherent: bool,
        constant: bool,
        by_rows: Callable | None,
        caller: str,
    ):
        self.model, self.guide, self.call, self.pieces, self.lengths = model, guide, call, pieces, lengths
        self.coherent, self.constant, self.by_rows, self.caller = coherent, constant, by_rows, caller
        self.weights: dict[str, WeightDraws] | None = None  # of all sites of the guide, where no draw changes them
        self.values: dict[str, Any] | None = None  # the guide's, where they are the same in every draw
        self.guided: set[str] = set()  # names of all sites of the guide
        self.along: dict[str, bool] = {}  # whether the examples of a site lie along its first axis

    @abstractmethod
    def _run(self, values: dict[str, Any] | None, piece: tuple[tuple, dict]) -> Any:
        """A run of the model at values of the guide, or at new ones."""

    @abstractmethod
    def _parts(self, run: Any) -> Parts:
        """What is kept of a run."""

    @abstractmethod
    def _parts_of_first(self, run: Any, length: int) -> Parts:
        """What is kept of the first run, checked; notes in ``along`` where the examples of a site lie."""

    @abstractmethod
    def _together(self, tensors: Sequence[Tensor], dim: int) -> Tensor:
        """Side by side along an axis."""

    def draws(self, number: int, until_equal: bool = False) -> Parts:
        """What is kept of ``number`` draws; of one draw, if ``until_equal`` and a second one is equal."""
        first, bytes_of_one = self._first()
        blocks, left = [first], number - 1
        if until_equal and left:
            blocks.append(self._one())
            left = left - 1 if differ(*blocks) else 0
            blocks = blocks if differ(*blocks) else blocks[:1]
        size = min(left, BLOCK_BYTES // max(1, bytes_of_one))
        size = size if size > 1 and self._repeats() else 0
        with warnings.catch_warnings():
            # It is taken instead of a loop over draws that would be as slow.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            while left:
                block = self._block(min(size, left)) if size > 1 else None
                size = 0 if block is None else size
                blocks.append(self._one() if block is None else block)
                left -= 1 if block is None else min(size, left)
        return joined(blocks, 0, self._together)

    def _guide_values(self, call: tuple[tuple, dict]) -> dict[str, Any]:
        args, kwargs = call
        trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
        nodes: Any = list(trace.iter_stochastic_nodes())
        self.guided = set(trace.nodes)
        latent = {name: site for name, site in nodes if not site_is_subsample(site)}
        in_plates = [name for name, site in latent.items() if site["cond_indep_stack"]]
        if self.coherent:
            check_cut(in_plates, len(self.pieces), self.caller)
        plates = {frame.name for name in in_plates for frame in latent[name]["cond_indep_stack"]}
        # Which examples a plate has taken goes with the values that it has for them.
        return {name: site["value"] for name, site in nodes if name in latent or name in plates}

    def _first(self) -> tuple[Parts, int]:
        """The first draw, checked, and the bytes that a draw needs."""
        values = self._guide_values(self.call) if self.coherent else None
        if values is not None:
            again = self._guide_values(self.call) if self.constant else {}
            if list(values) == list(again) and all(map(are_equal, values.values(), again.values())):
                self.values = values
            else:
                posteriors = fixed_posteriors(self.guide, self.call)
                self.weights = None if posteriors is None else {s: WeightDraws(p) for s, p in posteriors.items()}
        weights = sum(v.numel() * v.element_size() for v in (values or {}).values())
        found, largest = [], LargestResult()
        self.start = torch.get_rng_state(), values
        for piece, length in zip(self.pieces, self.lengths, strict=True):
            with largest:
                run = self._run(values, piece)
            found.append(as_one_draw(self._parts_of_first(run, length)))
        self.seen = found[0]
        return self._joined(found), weights + _TENSORS_AT_A_TIME * largest.bytes

    def _repeats(self) -> bool:
        """Whether the model gives the same result again for the same weights and seed: all of its noise is torch's."""
        state, values = self.start
        if any(not tensor.is_cpu for _, own in self.seen.values() for tensor in own):
            return True  # whose generators are others

        def again() -> Parts:
            torch.set_rng_state(state)
            return as_one_draw(self._parts(self._run(values, self.pieces[0])))

        with torch.random.fork_rng(devices=[]):
            second = again()
            # The first run may have drawn more: parameters of its own, values that it tried to do without.
            return not differ(self.seen, second) or not differ(second, again())

    def _one(self) -> Parts:
        values = self._guide_values(self.call) if self.coherent else None
        return self._joined([as_one_draw(self._parts(self._run(values, piece))) for piece in self.pieces])

    def _block(self, number: int) -> Parts | None:
        """``number`` draws side by side, None where the program cannot be run like that."""
        if self.by_rows is not None:
            plain = self.guide, self.coherent
            self.guide, self.coherent = self.by_rows, False
            block = self._side_by_side(number)
            self.guide, self.coherent = plain
            if block is not None:
                return block
            self.by_rows = None  # a weight is used twice, or by an operation without a rule
        return self._side_by_side(number)

    def _side_by_side(self, number: int) -> Parts | None:
        index, noise = torch.arange(number, device="cpu"), global_noise()
        try:
            with pyro.validation_enabled(False):
                values = self._values_of_block(index) if self.coherent else None
                block = self._joined([self._piece_of_block(index, values, piece) for piece in self.pieces])
        except Exception:  # whatever it is, the loop will meet it too, or do without
            return None
        return block if noise == global_noise() else None  # noise that vmap does not see is the same in every draw

    def _values_of_block(self, index: Tensor) -> dict[str, Any]:
        """The guide's values at as many draws as ``index`` is long, the draws first; or those of all draws."""
        if self.values is not None:
            return self.values
        if self.weights is not None:
            return {site: weight.draw(len(index)) for site, weight in self.weights.items()}

        def one(index: Tensor) -> dict[str, Any]:
            with BatchedNoise(index), BatchedSites():
                return self._guide_values(self.call)

        return torch.func.vmap(one, randomness="different")(index)

    def _piece_of_block(self, index: Tensor, values: dict[str, Any] | None, piece: tuple[tuple, dict]) -> Parts:
        structures: dict[str, Any] = {}

        def one(index: Tensor, values: dict[str, Any] | None) -> dict[str, list[Tensor]]:
            with BatchedNoise(index), BatchedSites():
                parts = self._parts(self._run(values, piece))
            structures.update({name: structure for name, (structure, _) in parts.items()})
            return {name: own for name, (_, own) in parts.items()}

        in_dims = (0, None if values is None or values is self.values else 0)
        tensors = torch.func.vmap(one, in_dims=in_dims, randomness="different")(index, values)
        return {name: (structures[name], own) for name, own in tensors.items()}

    def _joined(self, pieces: list[Parts]) -> Parts:
        return pieces_joined(pieces, self.along, self._together)
