"""What every distribution of a random weight has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution, ExpandedDistribution, Independent
from numpyro.distributions.kl import kl_divergence

from pyro_vd.numpyro.estimators import ESTIMATORS, WeightNoise, check_key, check_precision, safe_sqrt


class WeightPosterior(Distribution):
    """Abstract: the distribution of a random weight.

    Subclasses have ``loc``, ``variance`` (elementwise, of the weight), ``log_alpha`` and ``noise()``.
    Parameter values are not validated at construction, where they may be traced;
    :class:`pyro_vd.numpyro.TraceVD_ELBO` reports NaN and infinity by site.
    """

    arg_constraints: Any = {}
    pytree_data_fields = ("loc",)
    estimators: tuple[str, ...] = ESTIMATORS
    loc: Array

    @property
    @abstractmethod
    def log_alpha(self) -> Array:
        """Natural log of the noise ratio."""

    @abstractmethod
    def noise(self) -> WeightNoise:
        """The parts of the weight's randomness, for :mod:`pyro_vd.numpyro.estimators`."""

    @property
    def has_rsample(self) -> bool:
        return True

    @property
    def mean(self) -> Array:
        return self.loc

    @property
    def scale(self) -> Array:
        """Standard deviation of each weight."""
        return safe_sqrt(self.variance)

    @property
    def dropout_rate(self) -> Array:
        """Probability of dropping that gives the same noise ratio, ``alpha / (1 + alpha)``."""
        return jax.nn.sigmoid(self.log_alpha)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Whole weights, differentiable in the parameters."""
        return self.noise().draw(check_key(type(self).__name__, key), tuple(sample_shape))


def broadcast_parameters(owner: str, loc: Array, name: str, value: Any) -> tuple[Array, Array]:
    """``loc`` in the shape of both, and the parameter ``name`` as it came: one value may serve many weights.

    Raises an error that names ``owner`` where they are no floating point arrays that broadcast.
    """
    check_precision(owner, "loc", loc)
    if not isinstance(loc, (jax.Array, np.ndarray)) or not jnp.issubdtype(loc.dtype, jnp.floating):
        got = loc.dtype if isinstance(loc, (jax.Array, np.ndarray)) else type(loc).__name__
        raise TypeError(f"{owner}: expected loc to be a floating point array, got {got}; write loc.astype(float)")
    loc = as_array(owner, "loc", loc)
    value = as_array(owner, name, value, loc)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{owner}: expected {name} to be floating point, got {value.dtype}; write {name}.astype(float)")
    try:
        shape = jnp.broadcast_shapes(loc.shape, value.shape)
    except ValueError:
        raise ValueError(
            f"{owner}: expected {name} to broadcast with loc of shape {loc.shape}, got shape {value.shape}; give "
            f"{name} the shape of loc, or size 1 where it is shared"
        ) from None
    return jnp.broadcast_to(loc, shape), value


def as_array(owner: str, name: str, value: Any, like: Array | None = None) -> Array:
    """``value`` as an array, a number in the dtype of ``like``; no silent loss of float64."""
    check_precision(owner, name, value)
    if isinstance(value, (int, float)) and like is not None:
        return jnp.asarray(value, like.dtype)
    return jnp.asarray(value)


def register_kl(q: type, p: type) -> Callable[[Any], Any]:
    """A decorator that makes a function the ``kl_divergence`` of NumPyro for a pair of distributions."""
    dispatcher: Any = kl_divergence  # typed as the first of its rules
    return dispatcher.register(q, p)


def prior_of_weight(q: WeightPosterior, p: Independent, *known: type) -> Any:
    """The prior of the elements of a weight whose posterior is one event, for its KL rule.

    Raises ValueError where it is none of the ``known`` types, or does not cover the whole weight.
    """
    prior = p.base_dist.base_dist if isinstance(p.base_dist, ExpandedDistribution) else p.base_dist
    whole = p.reinterpreted_batch_ndims == len(q.event_shape)
    if whole and isinstance(prior, known):
        return prior
    names = " or ".join(one.__name__ for one in known)
    extent = "" if whole else f" with .to_event({p.reinterpreted_batch_ndims})"
    raise ValueError(
        f"expected a prior with a KL rule for {type(q).__name__}, {names} with .to_event({len(q.event_shape)}), got "
        f"{type(prior).__name__}{extent}; change the prior of the model, or the guide"
    )
