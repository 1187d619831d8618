"""The support of a finite likelihood, listed; and the entropy of a mixture of densities of one real number."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_vd.common.predictions import LEGENDRE, MOST_OUTCOMES
from pyro_vd.predict.stacking import take_apart

_MOST_TERMS = 2**24  # density evaluations held at a time


def outcomes(draws: Any) -> Tensor | None:
    """Every value of a finite support, shape ``(outcomes, 1, ..., *event)``; None where it is not finite, or too large.

    Args:
        draws: a distribution without a mask.
    """
    base, number = draws, 0
    while isinstance(base, Independent):
        base, number = base.base_dist, number + base.reinterpreted_batch_ndims
    if not base.has_enumerate_support:
        return None
    try:
        values = base.enumerate_support(expand=False)
    except NotImplementedError:  # unequal numbers of trials
        return None
    ones = [1] * len(draws.batch_shape)
    if not number:
        return values.reshape(-1, *ones, *base.event_shape) if len(values) <= MOST_OUTCOMES else None
    elements = draws.event_shape[:number]
    if base.event_shape or elements.numel() * math.log(len(values)) > math.log(MOST_OUTCOMES) + 1e-9:
        return None
    combinations = torch.cartesian_prod(*[values.reshape(-1)] * elements.numel())
    return combinations.reshape(-1, *ones, *elements)


@pyro.validation_enabled(False)  # quantiles at the edge of the support
def entropies_of_density(draws: Any) -> tuple[Tensor, Tensor] | None:
    """Entropy of the equal mixture of the first batch axis, and the mean of those of its parts, nats.

    ``-integral of p(y) * log p(y)``, in float64, by the Gauss-Legendre rule of 4 points between any two neighbours of
    the quantiles of all parts at 0, +-0.65, ..., +-7.5 standard deviations of a Gaussian. None without a density of one
    number that has an inverse cdf.
    """
    if draws.event_shape or draws.has_enumerate_support or draws.support.is_discrete:
        return None
    structure, tensors = take_apart(draws)
    draws = structure.build([t.double() if t.is_floating_point() else t for t in tensors])
    levels = torch.special.ndtr(torch.linspace(-7.5, 7.5, 24, dtype=torch.float64, device=tensors[0].device))
    try:
        points = torch.cat([draws.icdf(level.expand(draws.batch_shape)) for level in levels]).sort(0).values
    except NotImplementedError:
        return None
    rows = max(1, _MOST_TERMS // max(1, math.prod(draws.batch_shape)))
    mixture = torch.zeros_like(points[0])
    each = torch.zeros_like(points[0])
    for left, right in zip(points[:-1].split(rows), points[1:].split(rows), strict=True):
        for place, weight in LEGENDRE:
            values = (left + (right - left) * (1 + place) / 2).unsqueeze(1)  # against every draw
            log_p = torch.where(in_support(draws, values), draws.log_prob(values), -math.inf)
            mixed = log_p.logsumexp(1) - math.log(log_p.shape[1])
            length = (right - left) * weight / 2
            mixture -= (length * _p_log_p(mixed)).sum(0)
            each -= (length * _p_log_p(log_p).mean(1)).sum(0)
    dtype = tensors[0].dtype if tensors[0].is_floating_point() else torch.get_default_dtype()
    return mixture.to(dtype), each.to(dtype)


def _p_log_p(log_p: Tensor) -> Tensor:
    return torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0)


def as_sampled(draws: Any, value: Tensor) -> Tensor:
    """Integers and truth values as floating numbers, where those are what a likelihood samples: labels of a Bernoulli.

    Densities are computed in floating point: ``uint8(255) + 1`` would be 0 in the density of a Poisson.
    """
    if value.is_floating_point():
        return value
    with torch.random.fork_rng([value.device] if value.is_cuda else []):
        try:
            structure, tensors = take_apart(draws)
            sampled = structure.build([tensor[:1] for tensor in tensors]).sample()  # of one draw
        except (NotImplementedError, TypeError):  # it cannot be sampled
            return value
    if not sampled.is_floating_point():
        return value.long()
    return value.to(torch.promote_types(sampled.dtype, torch.float32))


def mask_of(draws: Any) -> Tensor:
    """Which likelihoods count, shape ``(draws, *batch)``: those that no mask hides, or has hidden a part of."""
    if isinstance(draws, dist.MaskedDistribution):
        mask = torch.as_tensor(draws._mask)
        return mask.expand(draws.batch_shape) & mask_of(draws.base_dist).to(mask.device)
    if isinstance(draws, Independent):
        each = mask_of(draws.base_dist)
        return each.flatten(each.dim() - draws.reinterpreted_batch_ndims).any(-1)
    return torch.ones(draws.batch_shape, dtype=torch.bool)


def in_support(draws: Any, value: Tensor) -> Tensor:
    """Which values lie in the support, by batch element; what a mask hides may be anything.

    A support whose bounds are NaN is not known: its values are let through, to a density that is NaN.
    """
    if isinstance(draws, dist.MaskedDistribution):
        hidden = ~torch.as_tensor(draws._mask)
        return in_support(draws.base_dist, value) | hidden.to(value.device)
    if isinstance(draws, Independent):
        each = in_support(draws.base_dist, value)
        return each.flatten(each.dim() - draws.reinterpreted_batch_ndims).all(-1)
    allowed = draws.support.check(value)
    for name in ("lower_bound", "upper_bound"):
        bound = getattr(draws.support, name, None)
        allowed = allowed | bound.isnan() if isinstance(bound, Tensor) else allowed
    return allowed
