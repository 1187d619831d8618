"""Equal mixtures over the first batch axis: their quantiles, the outcomes of a finite one, entropies of densities.

The cdf of a mixture is the mean of those of its parts; a quantile lies between the parts' smallest and largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp, ndtr

from pyro_vd.common.predictions import LEGENDRE, MOST_OUTCOMES, MOST_STEPS

# What a cdf or its inverse raises where a family has none, or none without an extra package.
_NONE = (NotImplementedError, ImportError)


def has_cdf(parts: Any) -> bool:
    """Whether a distribution of real numbers has a cdf."""
    if parts.is_discrete:
        return False
    try:
        parts.cdf(parts.sample(jax.random.key(0)))
    except _NONE:
        return False
    return True


def mixture_quantile(parts: Any, probability: float) -> Array:
    """The quantile of the equal mixture of the first batch axis, to the last digit.

    Args:
        parts: a distribution of single numbers with a cdf.
        probability: between 0 and 1.
    """
    inside = parts.sample(jax.random.key(0))

    def cdf(value: Array) -> Array:
        return _mean_cdf(parts, inside, value)

    low, high = _bracket(parts, inside, probability, cdf)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) / 2
        below = cdf(middle) < probability
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, MOST_STEPS, halve, (low, high))
    return low + (high - low) / 2


def mixture_cdf(parts: Any, value: Array) -> Array:
    """The cdf of the equal mixture of the first batch axis at ``value``, which has the other axes."""
    return _mean_cdf(parts, parts.sample(jax.random.key(0)), value)


def _mean_cdf(parts: Any, inside: Array, value: Array) -> Array:
    """0 below the support of a part, which has ``inside`` in it, and 1 above."""
    value = jnp.broadcast_to(value, inside.shape)
    with numpyro.validation_enabled(False):
        of_each = parts.cdf(value)
    # A support that a transform moves is not always known to it: NaN is outside too.
    outside = ~parts.support(value) | jnp.isnan(of_each)
    return jnp.where(outside, (value > inside).astype(of_each.dtype), of_each).clip(0.0, 1.0).mean(0)


def _bracket(parts: Any, inside: Array, probability: float, cdf: Callable[[Array], Array]) -> tuple[Array, Array]:
    try:
        of_each = parts.icdf(jnp.full_like(inside, probability))
        return of_each.min(0), of_each.max(0)
    except _NONE:
        pass
    low, high = inside.min(0), inside.max(0)
    step = jnp.maximum(high - low, 1e-3) + 1e-3 * jnp.abs(high)
    for _ in range(MOST_STEPS):
        below, above = cdf(low) > probability, cdf(high) < probability
        if not bool((below | above).any()):
            break
        low, high, step = jnp.where(below, low - step, low), jnp.where(above, high + step, high), 2 * step
    return low, high


def as_sampled(value: Array, of_classes: bool) -> Array:
    """A value as a density takes it: classes as integers, and integers of no fewer than 32 bits.

    Of a few bits they overflow in a density: ``uint8(255) + 1`` is 0. What is no whole number becomes -1, no class.
    """
    if of_classes and jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.where(value == jnp.floor(value), value, -1).astype(jnp.int32)
    is_small = value.dtype.itemsize < 4 and not jnp.issubdtype(value.dtype, jnp.inexact)
    return value.astype(jnp.int32) if is_small else value


def outcomes(draws: Any) -> Array | None:
    """Every value of a finite support, shape ``(outcomes, 1, ..., *event)``; None where it is not finite, or too large.

    Args:
        draws: a distribution without a mask.
    """
    base, number = draws, 0
    while isinstance(base, dist.Independent):
        base, number = base.base_dist, number + base.reinterpreted_batch_ndims
    if not base.has_enumerate_support:
        return None
    try:
        values = base.enumerate_support(expand=False)
    except NotImplementedError:  # unequal numbers of trials
        return None
    ones = (1,) * len(draws.batch_shape)
    if not number:
        return values.reshape(-1, *ones, *base.event_shape) if len(values) <= MOST_OUTCOMES else None
    elements = draws.event_shape[:number]
    if base.event_shape or math.prod(elements) * math.log(len(values)) > math.log(MOST_OUTCOMES) + 1e-9:
        return None
    combinations = jnp.stack(jnp.meshgrid(*[values.reshape(-1)] * math.prod(elements), indexing="ij"), -1)
    return combinations.reshape(-1, *ones, *elements)


def entropies_of_density(draws: Any) -> tuple[Array, Array] | None:
    """Entropy of the equal mixture of the first batch axis, and the mean of those of its parts, nats.

    ``-integral of p(y) * log p(y)``, by the Gauss-Legendre rule of 4 points between any two neighbours of the quantiles
    of all parts at 0, +-0.65, ..., +-7.5 standard deviations of a Gaussian (+-5 in float32). None without a density of
    one number that has an inverse cdf.
    """
    if draws.event_shape or draws.has_enumerate_support or draws.is_discrete:
        return None
    reach = 7.5 if jnp.result_type(float) == jnp.float64 else 5.0
    levels = ndtr(jnp.linspace(-reach, reach, 24))
    try:
        points = jnp.concatenate([draws.icdf(jnp.broadcast_to(level, draws.batch_shape)) for level in levels])
    except _NONE:
        return None
    points = jnp.sort(points, 0)

    def add(total: tuple[Array, Array], ends: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        left, right = ends
        for place, weight in LEGENDRE:
            value = (left + (right - left) * (1 + place) / 2)[None]
            log_p = jnp.where(draws.support(value), draws.log_prob(value), -jnp.inf)
            mixed = logsumexp(log_p, 0) - math.log(len(log_p))
            length = (right - left) * weight / 2
            total = (total[0] - length * _p_log_p(mixed), total[1] - length * _p_log_p(log_p).mean(0))
        return total, None

    zero = jnp.zeros_like(points[0])
    return jax.lax.scan(add, (zero, zero), (points[:-1], points[1:]))[0]


def in_support(draws: Any, value: Array) -> Array:
    """Which values lie in the support, by batch element; what a mask hides may be anything.

    A support whose bounds are NaN is not known: its values are let through, to a density that is NaN.
    """
    if isinstance(draws, dist.MaskedDistribution):
        return in_support(draws.base_dist, value) | ~jnp.asarray(draws._mask)
    if isinstance(draws, dist.Independent):
        each = in_support(draws.base_dist, value)
        return each.all(tuple(range(each.ndim - draws.reinterpreted_batch_ndims, each.ndim)))
    allowed = draws.support(value)
    for name in ("lower_bound", "upper_bound"):
        bound = getattr(draws.support, name, None)
        allowed = allowed if bound is None else allowed | jnp.isnan(bound)
    return allowed


def _p_log_p(log_p: Array) -> Array:
    return jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0)
