"""The weights of a guide as Gaussian tensors, and the parameters of a likelihood that depend on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vd.posteriors import WeightPosterior
from pyro_vd.posteriors.sites import is_function_of, is_matrix, weight_posterior
from pyro_vd.predict.moments.gaussian import GaussianTensor


def gaussian_weights(guide: Callable, on_unknown: str) -> Any:
    """The guide with a :class:`GaussianTensor` at the site of every weight, and the mean at every other.

    A plain ``Normal`` of two event dimensions or more, outside of plates, is a weight as well.

    Args:
        guide: a Pyro guide.
        on_unknown: "error" or "sample", where a weight has noise that its elements share, or an operation no rule.
    """
    return _GaussianWeights(on_unknown)(guide)


def drawn(parameter: Tensor, number: int, seen: list[tuple[GaussianTensor, Tensor]]) -> Tensor:
    """``number`` draws of a parameter of a likelihood; of a constant one, itself.

    Args:
        parameter: of any likelihood of the pass.
        number: how many.
        seen: the Gaussians that were drawn already, and their draws: functions of one share its noise.
    """
    if not isinstance(parameter, GaussianTensor):
        return parameter.unsqueeze(0).expand(number, *parameter.shape)
    values = next((values for one, values in seen if one is parameter.source), None)
    if values is None:
        values = parameter.source.values(number)
        seen.append((parameter.source, values))
    return parameter.at(values)


class _GaussianWeights(Messenger):
    def __init__(self, on_unknown: str):
        super().__init__()
        self.on_unknown = on_unknown
        self._noises: list[str] = []  # auxiliary sites of this run, of which a Delta may be a function

    def __enter__(self) -> Any:
        self._noises = []
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is not None or msg["is_observed"] or site_is_subsample(msg):
            return
        posterior, site = weight_posterior(msg, normals=True), msg["name"]
        is_auxiliary = msg["infer"].get("is_auxiliary")
        if is_auxiliary or not (isinstance(posterior, WeightPosterior) or is_matrix(msg)):
            msg["value"] = msg["fn"].mean
            self._noises += [site] if is_auxiliary else []
            return
        noise = posterior.noise() if isinstance(posterior, WeightPosterior) else None
        if noise is not None and noise.independent:
            variance = torch.zeros_like(noise.loc) if noise.variance is None else noise.variance
            msg["value"] = GaussianTensor(noise.loc, variance.to(noise.loc.dtype), noise, self.on_unknown)
            return
        is_delta = isinstance(posterior, Delta)
        if is_delta and not is_function_of(site, self._noises):
            msg["value"] = msg["fn"].mean
        elif is_delta or self.on_unknown == "error":
            shared = type(posterior).__name__ + (", whose elements share noise" if noise is not None else "")
            other = "" if is_delta else 'on_unknown="sample" to draw it once a pass, or '
            raise ValueError(
                f'site {site!r}: expected a weight whose elements are independent Gaussians for mode="moments", got '
                f'{f"a Delta of the sites {self._noises}" if is_delta else shared}; write {other}mode="weights"'
            )
        else:
            value = msg["fn"].sample() if noise is None else noise.draw(torch.Size())
            msg["value"] = GaussianTensor(value, torch.zeros_like(value), None, self.on_unknown, None, [site])
