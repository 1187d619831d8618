"""Quantiles of a mixture, by bisection of its cdf.

The cdf of a mixture is the mean of those of its parts; a quantile lies between the parts' smallest and largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from pyro_vd.common.predictions import MOST_STEPS
from pyro_vd.predict.stacking import take_apart


@pyro.validation_enabled(False)
def has_cdf(parts: Any) -> bool:
    """Whether a distribution has a cdf."""
    try:
        parts, inside = _without_validation(parts)
        parts.cdf(inside)
    except NotImplementedError:
        return False
    return True


@pyro.validation_enabled(False)  # a bisection looks outside the support too
def mixture_quantile(parts: Any, probability: float) -> Tensor:
    """The quantile of the equal mixture of the first batch axis, to the last digit.

    Args:
        parts: a distribution of single numbers with a cdf.
        probability: between 0 and 1.
    """
    parts, inside = _without_validation(parts)

    def cdf(value: Tensor) -> Tensor:
        return _mean_cdf(parts, inside, value)

    low, high = _bracket(parts, inside, probability, cdf)
    for _ in range(MOST_STEPS):
        middle = low + (high - low) / 2
        if bool(((middle <= low) | (middle >= high) | ~torch.isfinite(middle)).all()):
            break
        below = cdf(middle) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low + (high - low) / 2


@pyro.validation_enabled(False)
def mixture_cdf(parts: Any, value: Tensor) -> Tensor:
    """The cdf of the equal mixture of the first batch axis at ``value``, which has the other axes."""
    return _mean_cdf(*_without_validation(parts), value)


def _without_validation(parts: Any) -> tuple[Any, Tensor]:
    """The parts made again, and a value inside the support of each."""
    structure, tensors = take_apart(parts)
    return structure.build(tensors), _sample(parts)


def unmoved(parts: Any) -> Any:
    """A context that leaves the state of random numbers as it was, on the devices of a distribution."""
    return torch.random.fork_rng(devices={tensor.device for tensor in take_apart(parts)[1] if tensor.is_cuda})


def _sample(parts: Any) -> Tensor:
    with unmoved(parts):
        return parts.sample()


def _mean_cdf(parts: Any, inside: Tensor, value: Tensor) -> Tensor:
    return _cdf(parts, inside, value.expand(inside.shape)).mean(0)


def _cdf(parts: Any, inside: Tensor, value: Tensor) -> Tensor:
    """The cdf of each part: 0 below its support, which has ``inside`` in it, and 1 above."""
    if isinstance(parts, MixtureSameFamily):
        each: Any = parts.component_distribution
        weights: Any = parts.mixture_distribution
        own = _sample(each)
        return (_cdf(each, own, value.unsqueeze(-1).expand(own.shape)) * weights.probs).sum(-1)
    of_each = parts.cdf(value)
    support: Any = parts.support
    within = support.check(value.floor() if support.is_discrete else value)
    # A support that a transform moves is not always known to it: NaN is outside too.
    outside = ~within | of_each.isnan()
    return torch.where(outside, (value > inside).to(of_each.dtype), of_each).clamp(0.0, 1.0)


def _bracket(parts: Any, inside: Tensor, probability: float, cdf: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    try:
        of_each = parts.icdf(torch.full_like(inside, probability))
        return of_each.amin(0), of_each.amax(0)
    except NotImplementedError:
        pass
    low, high = inside.amin(0), inside.amax(0)
    step = (high - low).clamp_min(1e-3) + 1e-3 * high.abs()
    for _ in range(MOST_STEPS):
        below, above = cdf(low) > probability, cdf(high) < probability
        if not bool((below | above).any()):
            break
        low, high = torch.where(below, low - step, low), torch.where(above, high + step, high)
        step = 2 * step
    return low, high


def sample_quantile(samples: Tensor, probability: float) -> Tensor:
    """The smallest of the sorted ``samples`` (along the first axis) that ``probability`` of them do not exceed."""
    return samples[math.ceil(probability * len(samples)) - 1]
