"""DropoutNormal, the Gaussian weight with independent elements, and its KL rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Normal, constraints
from numpyro.distributions.util import validate_sample

from pyro_vd.common.options import KL_METHODS, NormalKL, check_choice
from pyro_vd.common.shapes import check_value_shape, expanded_shape, sample_shape_of
from pyro_vd.numpyro.arguments import require_key
from pyro_vd.numpyro.estimators import WeightNoise, at_least_single
from pyro_vd.numpyro.kl import kl_ard, kl_log_uniform, log_alpha_additive
from pyro_vd.numpyro.posteriors.base import (
    WeightPosterior,
    as_location,
    broadcast_parameters,
    real_arguments,
    register_kl,
)
from pyro_vd.numpyro.priors import ImproperLogUniform


class DropoutNormal(WeightPosterior):
    """A Gaussian weight, independent over elements, ``N(loc, alpha * loc**2) = N(loc, sigma2)``.

    Exactly one of ``log_alpha`` (multiplicative, Kingma's type A) and ``log_sigma2`` (additive, sparse
    variational dropout) is given; both can be read. With the additive form the gradient of ``loc``
    does not carry the noise of the weight (Molchanov et al. 2017, section 4.1).

    Args:
        loc: mean of each weight, floating point, any shape.
        log_alpha: natural log of ``variance / loc**2``; broadcasts with ``loc``.
        log_sigma2: natural log of the variance; broadcasts with ``loc``.
        kl: the formula of its KL to :class:`ImproperLogUniform`: a method of
            :func:`pyro_vd.numpyro.kl.kl_log_uniform`, or "ard" for :func:`pyro_vd.numpyro.kl.kl_ard`
            (the prior fitted to each weight).

    Raises:
        ValueError: both or neither of log_alpha and log_sigma2; shapes that do not broadcast; unknown kl; float64
            while JAX has it switched off; a draw without a key.
        TypeError: loc is not a floating point array.

    Example:
        >>> q = DropoutNormal(jnp.array([1.0]), log_sigma2=jnp.array([0.0]))
        >>> q.log_alpha, q.dropout_rate
        (Array([0.], dtype=float32), Array([0.5], dtype=float32))

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 3; Molchanov et al. 2017, arXiv:1701.05369, equation 12.

    See also:
        :class:`pyro_vd.numpyro.CorrelatedDropoutNormal`, :func:`pyro_vd.numpyro.kl.kl_log_uniform`,
        :class:`pyro_vd.guides.numpyro.AutoSparseVD`, :class:`pyro_vd.guides.numpyro.AutoVariationalDropout`.
    """

    support: Any = constraints.real
    arg_constraints: Any = real_arguments("loc", "log_alpha", "log_sigma2")
    reparametrized_params = ["loc", "log_alpha", "log_sigma2"]
    arguments = ("loc", "log_alpha", "log_sigma2")
    options = ("kl",)
    pytree_data_fields = ("_log_alpha", "_log_sigma2")
    pytree_aux_fields = ("kl",)

    def __init__(
        self,
        loc: Array,
        log_alpha: Array | float | None = None,
        *,
        log_sigma2: Array | float | None = None,
        kl: NormalKL = "sigmoid",
        validate_args: bool | None = None,
    ):
        if (log_alpha is None) == (log_sigma2 is None):
            got = "neither" if log_alpha is None else "both"
            raise ValueError(
                f"DropoutNormal: expected exactly one of log_alpha and log_sigma2, got {got}; write "
                "DropoutNormal(loc, log_sigma2=...) for additive or DropoutNormal(loc, log_alpha) for multiplicative "
                "noise"
            )
        check_choice("kl", kl, KL_METHODS, "DropoutNormal")
        name = "log_alpha" if log_sigma2 is None else "log_sigma2"
        value = log_alpha if log_sigma2 is None else log_sigma2
        self.loc, noise = broadcast_parameters("DropoutNormal", loc, name, value)
        self._log_alpha = noise if log_sigma2 is None else None
        self._log_sigma2 = noise if log_sigma2 is not None else None
        self.kl: Any = kl
        super().__init__(self.loc.shape, (), validate_args)

    def given(self) -> dict[str, Array]:
        return {"loc": self.loc} | {name: value for name, value in self._given.items() if value is not None}

    @property
    def log_alpha(self) -> Array:
        """Natural log of ``variance / loc**2``; finite at loc = 0."""
        return jnp.broadcast_to(self._noise_ratio, self.loc.shape)

    @property
    def _noise_ratio(self) -> Array:
        """``log_alpha`` in the shape it was given: one KL serves the weights that share it."""
        if self._log_sigma2 is not None:
            return log_alpha_additive(self.loc, self._log_sigma2)
        assert self._log_alpha is not None
        return self._log_alpha

    @property
    def log_sigma2(self) -> Array:
        """Natural log of the variance; finite at loc = 0."""
        if self._log_sigma2 is None:
            assert self._log_alpha is not None
            return self._log_alpha - log_alpha_additive(self.loc, jnp.zeros_like(self.loc))
        return jnp.broadcast_to(self._log_sigma2, self.loc.shape)

    @property
    def variance(self) -> Array:
        if self._log_sigma2 is None:
            assert self._log_alpha is not None
            return jnp.exp(self._log_alpha) * jnp.square(self.loc)
        return jnp.broadcast_to(jnp.exp(self._log_sigma2), self.loc.shape)

    @property
    def scale(self) -> Array:
        if self._log_sigma2 is None:
            assert self._log_alpha is not None
            return jnp.exp(0.5 * self._log_alpha) * jnp.abs(self.loc)
        return jnp.broadcast_to(jnp.exp(0.5 * self._log_sigma2), self.loc.shape)

    def noise(self) -> WeightNoise:
        dtype = at_least_single(self.loc.dtype)
        if dtype == self.loc.dtype:
            return WeightNoise(self.loc, self.variance)
        # A standard deviation of 1e-4 has a variance that is 0 in float16.
        given: Any = {name: None if value is None else value.astype(dtype) for name, value in self._given.items()}
        return WeightNoise(self.loc, DropoutNormal(self.loc.astype(dtype), **given).variance)

    @property
    def _given(self) -> dict[str, Array | None]:
        return {"log_alpha": self._log_alpha, "log_sigma2": self._log_sigma2}

    def expand(self, batch_shape: Sequence[int]) -> DropoutNormal:
        batch_shape = expanded_shape(self, batch_shape)
        noise: Any = {name: None if v is None else jnp.broadcast_to(v, batch_shape) for name, v in self._given.items()}
        return DropoutNormal(jnp.broadcast_to(self.loc, batch_shape), **noise, kl=self.kl, validate_args=False)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = (*sample_shape_of(self, sample_shape), *self.batch_shape)
        noise = jax.random.normal(require_key("DropoutNormal", key), shape, self.loc.dtype)
        # |loc| rather than loc in the multiplicative scale: the same distribution.
        return self.loc + self.scale * noise

    def _normal(self) -> Normal:
        return Normal(self.loc, self.scale, validate_args=False)

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        check_value_shape(self, jnp.shape(value))
        return self._normal().log_prob(value)

    def cdf(self, value: Array) -> Array:
        return self._normal().cdf(value)

    def icdf(self, q: Array) -> Array:
        return self._normal().icdf(q)

    def entropy(self) -> Array:
        return self._normal().entropy()


@register_kl(DropoutNormal, ImproperLogUniform)
def _kl_dropout_normal_log_uniform(q: DropoutNormal, p: ImproperLogUniform) -> Array:
    kl = kl_ard(q._noise_ratio) if q.kl == "ard" else kl_log_uniform(q._noise_ratio, q.kl)
    return jnp.broadcast_to(kl, jnp.broadcast_shapes(q.batch_shape, p.batch_shape))


@register_kl(Normal, ImproperLogUniform)
def _kl_normal_log_uniform(q: Any, p: ImproperLogUniform) -> Array:
    return _kl_dropout_normal_log_uniform(
        DropoutNormal(as_location("Normal", q.loc), log_sigma2=2 * jnp.log(q.scale)), p
    )


@register_kl(DropoutNormal, Normal)
def _kl_dropout_normal_normal(q: DropoutNormal, p: Any) -> Array:
    """``0.5 * ((variance + (loc - prior loc)**2) / prior variance - 1 - log(variance / prior variance))``."""
    if q.kl == "ard":
        raise ValueError(
            "DropoutNormal: kl='ard' fits the variance of the prior to each weight, got a fixed Normal prior; write "
            "prior=ImproperLogUniform() in the model, or another kl (AutoMeanField instead of AutoARD)"
        )
    # In half precision a prior of scale 1e-4 would have the variance 0; Normal(0, 1) holds whole numbers.
    scale = jnp.asarray(p.scale)
    floating = scale.dtype if jnp.issubdtype(scale.dtype, jnp.floating) else jnp.result_type(float)
    prior_variance = jnp.square(scale.astype(at_least_single(floating)))
    square = jnp.square(q.loc - p.loc)
    return 0.5 * ((q.variance + square) / prior_variance - 1 - q.log_sigma2 + jnp.log(prior_variance))
