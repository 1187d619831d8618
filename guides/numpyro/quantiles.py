"""Quantiles of the sites of a guide, element by element, where they have a closed form."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri
from numpyro.distributions import transforms

from pyro_vd.numpyro.posteriors import CorrelatedDropoutNormal, DropoutNormal, LowRankNormal, WeightPosterior

_GAUSSIAN = (DropoutNormal, CorrelatedDropoutNormal, LowRankNormal)  # of which every element by itself is a Gaussian
_DRAWS = "write jnp.quantile(guide.sample_posterior(rng_key, params, sample_shape=(1000,))[{!r}], q, 0)"


def weight_quantiles(site: str, posterior: WeightPosterior, probabilities: list[float]) -> Array:
    """Quantiles of every element of a weight, the probabilities first; ValueError where it is not Gaussian."""
    if not isinstance(posterior, _GAUSSIAN):
        raise ValueError(
            f"site {site!r}: expected a weight whose elements are Gaussian for quantiles in closed form, got "
            f"{type(posterior).__name__}; {_DRAWS.format(site)}"
        )
    return gaussian_quantiles(posterior.mean, posterior.scale, probabilities)


def mapped_quantiles(site: str, transform: Any, loc: Array, scale: Array, probabilities: list[float]) -> Array:
    """Quantiles of the image of a Gaussian on the real line; ValueError where elements are mapped together."""
    while isinstance(transform, transforms.IndependentTransform):
        transform = transform.base_transform
    if transform.domain.event_dim or transform.codomain.event_dim:
        raise ValueError(
            f"site {site!r}: expected a site whose elements are mapped from the real line one by one for quantiles in "
            f"closed form, got {type(transform).__name__} onto {transform.codomain}; {_DRAWS.format(site)}"
        )
    falls = transform(loc + scale) < transform(loc - scale)
    rising, falling = (transform(gaussian_quantiles(loc, sign * scale, probabilities)) for sign in (1, -1))
    return jnp.where(falls, falling, rising)


def gaussian_quantiles(loc: Array, scale: Array, probabilities: list[float]) -> Array:
    """``loc + scale * ndtri(probability)``, shape ``(number of probabilities, *shape of loc)``."""
    loc = jnp.asarray(loc)
    return loc + scale * ndtri(jnp.asarray(probabilities, loc.dtype)).reshape(-1, *(1,) * loc.ndim)
