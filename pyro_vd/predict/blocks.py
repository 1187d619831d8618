"""Runs of guide and model, one a draw, that keep the likelihood of each observation site; many draws side by side.

The first draw runs as it is: it makes the parameters of a new guide, is checked by Pyro, and shows what a draw
weighs. The others run in blocks under ``torch.vmap``, each weight's draws one tensor; one by one where vmap cannot.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from pyro_vd.checks import describe
from pyro_vd.common.predictions import check_cut, wanted_sites
from pyro_vd.handlers import run_coherently
from pyro_vd.predict.moments import GaussianTensor, drawn
from pyro_vd.predict.placeholders import BatchedNormal, Given, LargestResult, ValueIsUsed
from pyro_vd.predict.posteriors import draws_of_weight, fixed_posteriors
from pyro_vd.predict.stacking import Structure, stacked, take_apart

# What the draws of one block may take together, in weights and activations. More does not make them faster.
BLOCK_BYTES = 2**25
# An operation holds its input, its output, and something beside.
_TENSORS_AT_A_TIME = 3

Draws = dict[str, tuple[Structure, list[Tensor]]]  # each tensor with the draws first


class DrawsOfLikelihoods:
    """The likelihoods of a model at draws of its guide.

    Args:
        model, guide: Pyro model; the guide under the handlers of the mode.
        call: arguments of the guide.
        pieces, lengths: the same in pieces for the model, and the number of examples in each.
        sites: names to keep; all if empty.
        coherent: draw the guide once a draw for all pieces; otherwise once for every piece.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        call: tuple[tuple, dict],
        pieces: list[tuple[tuple, dict]],
        lengths: list[int],
        sites: Collection[str],
        coherent: bool,
    ):
        self.model, self.guide, self.call, self.sites, self.coherent = model, guide, call, sites, coherent
        self.pieces, self.lengths = pieces, lengths
        self.used: list[str] = []  # predicted sites whose value the model goes on to use
        self.posteriors: dict[str, Any] | None = None  # of all sites of the guide, where no draw changes them
        self.along: dict[str, bool] = {}  # whether the examples of a site lie along its first axis

    def draws(self, number: int, until_equal: bool = False) -> Draws:
        """The likelihoods of ``number`` draws; of one, if ``until_equal`` and another one is the same."""
        first, bytes_of_one = self._first()
        blocks, left = [first], number - 1
        if until_equal and left:
            blocks.append(self._one())
            left = left - 1 if _differ(*blocks) else 0
            blocks = blocks if _differ(*blocks) else blocks[:1]
        size = min(left, BLOCK_BYTES // max(1, bytes_of_one))
        while left:
            block = self._block(min(size, left)) if size > 1 else None
            size = 0 if block is None else size
            blocks.append(self._one() if block is None else block)
            left -= 1 if block is None else min(size, left)
        return {site: _joined(site, [block[site] for block in blocks], 0) for site in first}

    def of_moments(self, number: int) -> Draws:
        """The likelihoods at ``number`` draws of what a guide of :func:`gaussian_weights` makes of their parameters."""
        blocks: list[Draws] = []
        if self._pass_of_moments(number, blocks):  # an operation drew its input: each draw takes a pass of its own
            blocks.clear()
            for _ in range(number):
                self._pass_of_moments(1, blocks)
        return {site: _joined(site, [block[site] for block in blocks], 0) for site in blocks[0]}

    def _pass_of_moments(self, number: int, blocks: list[Draws]) -> bool:
        values = self._guide_values(self.call)
        found = []
        with pyro.validation_enabled(False):
            for piece, length in zip(self.pieces, self.lengths, strict=True):
                sites = self._model_sites(values, piece)
                if self.used:
                    raise ValueError(
                        f"site {self.used[0]!r}: expected a model that returns what it predicts, got one that goes on "
                        'to use it, which has no value in one pass of moments; write mode="weights"'
                    )
                parts: Draws = {}
                for name, site in sites.items():
                    likelihood = _likelihood(site)
                    structure, own = take_apart(likelihood)
                    parts[name] = structure, [drawn(tensor, number) for tensor in own]
                    self.along[name] = _is_along(name, likelihood, length) and self.along.get(name, True)
                found.append(parts)
        blocks.append(self._pieces_joined(found))
        return any(value.sampled for value in values.values() if isinstance(value, GaussianTensor))

    def _guide_values(self, call: tuple[tuple, dict]) -> dict[str, Any]:
        args, kwargs = call
        trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
        nodes: Any = trace.iter_stochastic_nodes()
        latent = {name: site for name, site in nodes if not site_is_subsample(site)}
        if self.coherent:
            cut = [name for name, site in latent.items() if site["cond_indep_stack"]]
            check_cut(cut, len(self.pieces), "predictive_distribution")
        return {name: site["value"] for name, site in latent.items()}

    def _model_sites(self, values: dict[str, Any] | None, piece: tuple[tuple, dict]) -> dict[str, Any]:
        """The messages of the observation sites."""
        if values is None:  # of mode "local", where a weight that is used twice may be drawn once in a second run
            return run_coherently(lambda: self._model_sites(self._guide_values(piece), piece))
        args, kwargs = piece
        run = self._model_run(values, args, kwargs)
        predicted = {
            name: site
            for name, site in run.nodes.items()
            if site["type"] == "sample" and name not in values and not isinstance(site["fn"], Unit)
            and not site_is_subsample(site) and not site["infer"].get("_deterministic")
        }  # fmt: skip
        return {name: predicted[name] for name in wanted_sites(self.sites, predicted, values)}

    def _model_run(self, values: dict[str, Any], args: tuple, kwargs: dict) -> Any:
        """A trace of the model at the values; what it predicts is sampled only where it goes on to use it."""
        if not self.used:
            try:
                run = poutine.trace(Given(values, self.used)(self.model)).get_trace(*args, **kwargs)
                if not self.used:  # which a model that catches exceptions may hide
                    return run
            except ValueIsUsed:
                pass
        return poutine.trace(Given(values)(self.model)).get_trace(*args, **kwargs)

    def _first(self) -> tuple[Draws, int]:
        """The first draw, checked, and the bytes that a draw needs."""
        values = self._guide_values(self.call) if self.coherent else None
        self.posteriors = fixed_posteriors(self.guide, self.call) if self.coherent else None
        weights = sum(v.numel() * v.element_size() for v in (values or {}).values())
        found, largest = [], LargestResult()
        for piece, length in zip(self.pieces, self.lengths, strict=True):
            with largest:
                sites = self._model_sites(values, piece)
            parts = {}
            for name, site in sites.items():
                likelihood = _likelihood(site)
                parts[name] = _taken_apart(name, likelihood)
                along = _is_along(name, likelihood, length)
                self.along[name] = along and self.along.get(name, True)
            found.append({name: (structure, [t.unsqueeze(0) for t in own]) for name, (structure, own) in parts.items()})
        return self._pieces_joined(found), weights + _TENSORS_AT_A_TIME * largest.bytes

    def _one(self) -> Draws:
        values = self._guide_values(self.call) if self.coherent else None
        found = []
        for piece in self.pieces:
            sites = self._model_sites(values, piece)
            parts = {name: take_apart(_likelihood(site)) for name, site in sites.items()}
            found.append({name: (structure, [t.unsqueeze(0) for t in own]) for name, (structure, own) in parts.items()})
        return self._pieces_joined(found)

    def _block(self, number: int) -> Draws | None:
        """``number`` draws side by side, None where the program cannot be run so."""
        index = torch.arange(number)
        try:
            with pyro.validation_enabled(False), warnings.catch_warnings(), BatchedNormal():
                # It is taken instead of a loop over draws that would be as slow.
                warnings.filterwarnings("ignore", message="There is a performance drop")
                values = self._values_of_block(index) if self.coherent else None
                return self._pieces_joined([self._piece_of_block(index, values, piece) for piece in self.pieces])
        except Exception:  # whatever it is, the loop will meet it too, or do without
            return None

    def _values_of_block(self, index: Tensor) -> dict[str, Any]:
        """The guide's values at as many draws as ``index`` is long, the draws first."""
        if self.posteriors is None:
            return torch.func.vmap(lambda _: self._guide_values(self.call), randomness="different")(index)
        return {site: draws_of_weight(posterior, len(index)) for site, posterior in self.posteriors.items()}

    def _piece_of_block(self, index: Tensor, values: dict[str, Any] | None, piece: tuple[tuple, dict]) -> Draws:
        structures: dict[str, Structure] = {}

        def one(_: Tensor, values: dict[str, Any] | None) -> dict[str, list[Tensor]]:
            parts = {name: take_apart(_likelihood(site)) for name, site in self._model_sites(values, piece).items()}
            structures.update({name: structure for name, (structure, _) in parts.items()})
            return {name: own for name, (_, own) in parts.items()}

        in_dims = (0, None if values is None else 0)
        tensors = torch.func.vmap(one, in_dims=in_dims, randomness="different")(index, values)
        return {name: (structures[name], own) for name, own in tensors.items()}

    def _pieces_joined(self, pieces: list[Draws]) -> Draws:
        joined = {}
        for name in pieces[0]:
            cut = self.along[name] and len(pieces) > 1
            joined[name] = _joined(name, [piece[name] for piece in pieces], 1) if cut else pieces[0][name]
        return joined


def _likelihood(site: Any) -> Any:
    fn, mask = site["fn"], site["mask"]
    return fn if mask is None or mask is True else fn.mask(mask)


def _is_along(name: str, likelihood: Any, length: int) -> bool:
    """Whether the examples lie along the first axis; an error where they lie inside one event that has no parts."""
    shape = likelihood.batch_shape + likelihood.event_shape
    if not length or not shape or shape[0] != length:
        return False
    while isinstance(likelihood, Independent):
        likelihood = likelihood.base_dist
    if likelihood.batch_shape[:1] != shape[:1]:
        raise ValueError(
            f"batch_size: expected a likelihood at site {name!r} whose examples are its batch, got "
            f"{describe(likelihood)}, one distribution of all of them; leave batch_size out"
        )
    return True


def _taken_apart(name: str, likelihood: Any) -> tuple[Structure, list[Tensor]]:
    """The likelihood taken apart, having tried that it can be put together again, the draws first."""
    try:
        structure, tensors = take_apart(likelihood)
        again = structure.build([tensor.unsqueeze(0) for tensor in tensors])
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"site {name!r}: expected a likelihood whose draws can be stacked into one distribution, got "
            f"{describe(likelihood)}: {error}; take a family of pyro.distributions, or posterior_predictive, which "
            "returns values"
        ) from error
    same = again.batch_shape == (1, *likelihood.batch_shape) and again.event_shape == likelihood.event_shape
    if same:
        with torch.random.fork_rng(devices=[]):  # a value to compare the densities at
            value = likelihood.sample()
        try:
            expected, got = likelihood.log_prob(value), again.log_prob(value)[0]
            same = torch.allclose(expected, got, rtol=1e-3, atol=1e-3, equal_nan=True)
        except NotImplementedError:
            pass
    if not same:
        raise TypeError(
            f"site {name!r}: expected a likelihood that its constructor makes again from its attributes "
            f"{[argument for argument, _ in structure.arguments]}, got {describe(likelihood)}, which comes out "
            "another; keep every argument of its constructor as an attribute of that name"
        )
    return structure, tensors


def _joined(site: str, parts: list[tuple[Structure, list[Tensor]]], dim: int) -> tuple[Structure, list[Tensor]]:
    structure, tensors = parts[0]
    for other, own in parts[1:]:
        fits = other == structure and all(
            a.shape[:dim] + a.shape[dim + 1 :] == b.shape[:dim] + b.shape[dim + 1 :]
            for a, b in zip(tensors, own, strict=True)
        )
        if not fits:
            raise ValueError(
                f"site {site!r}: expected the same family and shape in every draw and piece, got parameters of shapes "
                f"{[tuple(t.shape) for t in tensors]} and {[tuple(t.shape) for t in own]} of {structure} and {other}"
            )
    return structure, [stacked(same, torch.cat, dim) for same in zip(*(own for _, own in parts), strict=True)]


def _differ(first: Draws, second: Draws) -> bool:
    pairs = ((first[site], second[site]) for site in first)
    return any(
        a[0] != b[0] or not all(map(torch.equal, a[1], b[1])) for a, b in pairs
    )  # fmt: skip
