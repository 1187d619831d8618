"""Many draws of the weights of a guide without running it for each, where its posteriors are the same in every draw."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vd.posteriors import DropoutNormal, WeightPosterior
from pyro_vd.posteriors.sites import base_distribution
from pyro_vd.predict.placeholders import Given, NotSampled, ValueIsUsed

_WORTH_A_THREAD = 10_000  # random numbers; fewer take less time than the start of a thread
# Elements that PyTorch computes on one thread: otherwise each thread that fills a draw starts threads of its own.
_SERIAL = 2**15 - 64


def fixed_posteriors(guide: Callable, call: tuple[tuple, dict]) -> dict[str, WeightPosterior] | None:
    """The posterior of every site of a guide; None unless each is one of a weight that is the same in every draw.

    The guide runs twice, with values at its sites that may not be used: it must make the same posteriors.
    """
    runs = []
    for _ in range(2):
        used: list[str] = []
        try:
            trace: Any = poutine.trace(Given({}, used)(guide)).get_trace(*call[0], **call[1])
        except ValueIsUsed:
            return None
        sites = {name: site for name, site in trace.iter_stochastic_nodes() if not site_is_subsample(site)}
        posteriors: dict[str, Any] = {name: base_distribution(site["fn"]) for name, site in sites.items()}
        plain = all(isinstance(site["value"], NotSampled) for site in sites.values())
        in_plate = any(site["cond_indep_stack"] for site in sites.values())
        if used or in_plate or not plain or not all(isinstance(p, WeightPosterior) for p in posteriors.values()):
            return None
        runs.append(posteriors)
    first, second = runs
    same = first.keys() == second.keys() and all(_are_equal(first[site], second[site]) for site in first)
    return first if same else None


def _are_equal(first: WeightPosterior, second: WeightPosterior) -> bool:
    """Whether two posteriors are of one family, and made of the same values."""
    ours, theirs = first.given(), second.given()
    return (
        type(first) is type(second)
        and all(getattr(first, option) == getattr(second, option) for option in first.options)
        and ours.keys() == theirs.keys()
        and all(are_equal(ours[name], theirs[name]) for name in ours)
    )


def are_equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are known to be equal; on ``meta`` a tensor is known to equal itself alone."""
    return first is second or not (first.is_meta or second.is_meta) and torch.equal(first, second)


class WeightDraws:
    """Many draws of a weight at once.

    Random numbers are most of the time of a prediction on few examples, and PyTorch makes them on one thread: here each
    draw of a Gaussian weight has a generator of its own, and as many are filled at a time as PyTorch has threads.

    Args:
        posterior: of the weight.
    """

    def __init__(self, posterior: WeightPosterior):
        self.posterior = posterior
        scale: Any = posterior.scale if isinstance(posterior, DropoutNormal) else None
        self.scale, loc = scale, posterior.loc
        self.is_filled = scale is not None and scale.dtype == loc.dtype and loc.device.type == "cpu"

    def draw(self, number: int) -> Tensor:
        """``number`` draws, first."""
        if not self.is_filled:
            return torch.stack([self.posterior.rsample() for _ in range(number)])
        loc = self.posterior.loc
        draws = torch.empty((number, *loc.shape), dtype=loc.dtype, device="cpu")
        seeds = torch.randint(2**62, (number,), device="cpu").tolist()
        threads = min(torch.get_num_threads(), number) if loc.numel() > _WORTH_A_THREAD else 1
        if threads == 1:
            for draw, seed in zip(draws, seeds, strict=True):
                self._fill(draw, seed)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(partial(self._fill, part=_SERIAL), draws, seeds))
        return draws

    def _fill(self, draw: Tensor, seed: int, part: int = 2**62) -> None:
        """Make a draw, ``part`` elements of it at a time; finished while the processor's cache holds it."""
        with torch.no_grad():  # which a thread does not inherit
            draw.normal_(generator=torch.Generator("cpu").manual_seed(seed))
            whole = self.posterior.loc, self.scale, draw
            for loc, scale, own in zip(*(tensor.reshape(-1).split(part) for tensor in whole), strict=True):
                torch.addcmul(loc, scale, own, out=own)
