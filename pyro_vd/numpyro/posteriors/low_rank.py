"""LowRankNormal, the Gaussian weight with a diagonal plus low-rank covariance, and its KL rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution, Independent, LowRankMultivariateNormal, constraints
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import validate_sample

from pyro_vd.common.options import KL_METHODS, NormalKL, check_choice, check_rank
from pyro_vd.common.shapes import check_one_weight, check_value_shape
from pyro_vd.numpyro.estimators import WeightNoise
from pyro_vd.numpyro.kl import log_alpha_additive
from pyro_vd.numpyro.posteriors.base import (
    WeightPosterior,
    as_array,
    broadcast_parameters,
    prior_of_weight,
    real_arguments,
    register_kl,
)
from pyro_vd.numpyro.posteriors.normal import DropoutNormal


class LowRankNormal(WeightPosterior):
    """A Gaussian weight, ``w = loc + exp(0.5 * log_sigma2) * e + sum_r factor[r] * z_r``, e and z standard normal.

    An event of the shape of ``loc`` (its elements are not independent), without ``to_event``. Under "local" the
    diagonal part is sampled per output element and z per row of the input. For any prior whose elements are
    independent, ``KL = sum_i KL(marginal_i || prior_i) + 0.5 * (sum_i log variance_i - log det covariance)``.

    Args:
        loc: mean of the weight.
        log_sigma2: natural log of the variance of the diagonal part, broadcasts with ``loc``.
        factor: shape ``(rank,) + loc.shape``.
        kl: the formula of its marginals' KL to the log-uniform prior.

    Raises:
        ValueError: a factor of another shape; a rank above the number of weights.

    Example:
        >>> q = LowRankNormal(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones((1, 2, 3)))
        >>> q.variance[0]
        Array([2., 2., 2.], dtype=float32)

    References:
        Kingma et al. 2015 for the diagonal part; Ong, Nott, Smith 2018, arXiv:1701.03208, for the family.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoLowRank`.
    """

    estimators = ("local", "shared", "per_example")
    arg_constraints: Any = real_arguments("loc", "log_sigma2", "factor")
    reparametrized_params = ["loc", "log_sigma2", "factor"]
    arguments = ("loc", "log_sigma2", "factor")
    options = ("kl",)
    pytree_data_fields = ("_log_sigma2", "factor")
    pytree_aux_fields = ("kl",)

    def __init__(
        self,
        loc: Array,
        log_sigma2: Array | float,
        factor: Array,
        *,
        kl: NormalKL = "sigmoid",
        validate_args: bool | None = None,
    ):
        self.loc, log_sigma2 = broadcast_parameters("LowRankNormal", loc, "log_sigma2", log_sigma2)
        self._log_sigma2 = jnp.broadcast_to(log_sigma2, self.loc.shape)
        factor = as_array("LowRankNormal", "factor", factor)
        if factor.ndim == 0 or factor.shape[1:] != self.loc.shape:
            raise ValueError(f"LowRankNormal: expected factor of shape (rank, *{self.loc.shape}), got {factor.shape}")
        check_rank("LowRankNormal", len(factor), self.loc.size)
        self.factor = factor
        self.kl = check_choice("kl", kl, KL_METHODS, "LowRankNormal")
        super().__init__((), self.loc.shape, validate_args)

    @classmethod
    def infer_shapes(
        cls, loc: Any, log_sigma2: Any = (), factor: Any = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shape of a distribution with arguments of these shapes."""
        return (), jnp.broadcast_shapes(tuple(loc), tuple(log_sigma2))

    @constraints.dependent_property(is_discrete=False)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def log_sigma2(self) -> Array:
        """Natural log of the variance of the diagonal part alone."""
        return self._log_sigma2

    @property
    def variance(self) -> Array:
        """Of each weight: diagonal plus low-rank part."""
        return jnp.exp(self._log_sigma2) + jnp.square(self.factor).sum(0)

    @property
    def log_alpha(self) -> Array:
        """Natural log of ``variance / loc**2``."""
        return log_alpha_additive(self.loc, jnp.log(self.variance))

    @property
    def log_det_covariance(self) -> Array:
        """``sum log_sigma2 + log det(I + U D^-1 U^T)``, with an R x R determinant."""
        rank = len(self.factor)
        scaled = (self.factor * jnp.exp(-0.5 * self._log_sigma2)).reshape(rank, -1)
        inner = scaled @ scaled.T + jnp.eye(rank, dtype=scaled.dtype)
        return self._log_sigma2.sum() + 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(inner))).sum()

    def noise(self) -> WeightNoise:
        return WeightNoise(self.loc, jnp.exp(self._log_sigma2), factor=self.factor)

    def expand(self, batch_shape: Sequence[int]) -> LowRankNormal:
        check_one_weight(self, batch_shape)
        return self

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        check_value_shape(self, jnp.shape(value))
        value = jnp.broadcast_to(value, jnp.broadcast_shapes(jnp.shape(value), self.loc.shape))
        return self._flat().log_prob(value.reshape(*value.shape[: value.ndim - self.loc.ndim], -1))

    def entropy(self) -> Array:
        return self._flat().entropy()

    def _flat(self) -> LowRankMultivariateNormal:
        factor = self.factor.reshape(len(self.factor), -1).T
        diagonal = jnp.exp(self._log_sigma2).reshape(-1)
        return LowRankMultivariateNormal(self.loc.reshape(-1), factor, diagonal, validate_args=False)


@register_kl(LowRankNormal, Independent)
def _kl_low_rank(q: LowRankNormal, p: Independent) -> Array:
    prior = prior_of_weight(q, p, Distribution)
    marginal = DropoutNormal(q.loc, log_sigma2=jnp.log(q.variance), kl=q.kl)
    total_correlation = 0.5 * (jnp.log(q.variance).sum() - q.log_det_covariance)
    return kl_divergence(marginal, prior).sum() + total_correlation
