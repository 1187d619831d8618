"""GroupNormal, the Gaussian weight with a random scale per unit, and its KL rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from numpyro.distributions import Independent, Normal
from numpyro.distributions.kl import kl_divergence

from pyro_vd.common.options import LOG_UNIFORM_METHODS, LogUniformKL, check_choice
from pyro_vd.numpyro.estimators import WeightNoise
from pyro_vd.numpyro.kl import kl_log_uniform, log_alpha_additive
from pyro_vd.numpyro.posteriors.base import (
    as_location,
    broadcast_parameters,
    prior_of_weight,
    real_arguments,
    register_kl,
)
from pyro_vd.numpyro.posteriors.normal import DropoutNormal
from pyro_vd.numpyro.posteriors.units import UnitPosterior, unit_values
from pyro_vd.numpyro.priors import ImproperLogUniform


class GroupNormal(UnitPosterior):
    """A Gaussian weight with a random scale per unit, ``W = z * v``, ``z_i ~ N(.)``, ``v ~ N(.)`` elementwise.

    With the log-uniform prior on the weight read as the scale mixture it is, p(z) ~ 1 / |z| and
    ``w | z ~ N(0, z**2)`` (normal-Jeffreys), the KL is ``kl_log_uniform(log_alpha)`` per unit plus KL(v || N(0, 1)) per
    weight. ``log_alpha`` is that of z: a unit above the threshold is pruned whole.

    Args:
        v_loc, v_log_sigma2: mean and log-variance of v, shape of the weight.
        unit_loc, unit_log_sigma2: mean and log-variance of z, shape ``(units,)``.
        unit_dim: where the units lie (see :class:`UnitPosterior`): those of the inputs prune input units, those of
            the outputs filters.
        kl: a method of :func:`pyro_vd.numpyro.kl.kl_log_uniform`.

    Raises:
        ValueError: shapes that do not fit; unknown kl.

    Example:
        >>> q = GroupNormal(jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones(3), jnp.zeros(3))
        >>> q.variance[0]
        Array([3., 3., 3.], dtype=float32)

    References:
        Louizos, Ullrich, Welling 2017, arXiv:1705.08665, equations 7-9 and appendix A.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoGroupSparse`.
    """

    arg_constraints: Any = real_arguments("v_loc", "v_log_sigma2", "unit_loc", "unit_log_sigma2")
    reparametrized_params = ["v_loc", "v_log_sigma2", "unit_loc", "unit_log_sigma2"]
    arguments = ("v_loc", "v_log_sigma2", "unit_loc", "unit_log_sigma2")
    options = ("unit_dim", "kl")
    pytree_data_fields = ("v", "_unit_loc", "_unit_log_sigma2")
    pytree_aux_fields = ("kl",)

    def __init__(
        self,
        v_loc: Array,
        v_log_sigma2: Array,
        unit_loc: Array,
        unit_log_sigma2: Array,
        *,
        unit_dim: int = 1,
        kl: LogUniformKL = "sigmoid",
        validate_args: bool | None = None,
    ):
        v_loc = as_location("GroupNormal", v_loc, "v_loc")
        v_loc, v_log_sigma2 = broadcast_parameters("GroupNormal", v_loc, "v_log_sigma2", v_log_sigma2)
        super().__init__(v_loc, unit_dim)
        self.v = DropoutNormal(v_loc, log_sigma2=v_log_sigma2)
        self.kl = check_choice("kl", kl, LOG_UNIFORM_METHODS, "GroupNormal")
        self._unit_loc = unit_values(self, "unit_loc", unit_loc)
        self._unit_log_sigma2 = unit_values(self, "unit_log_sigma2", unit_log_sigma2)
        self.loc = self.along_units(self._unit_loc) * v_loc
        self._validate(validate_args)

    @property
    def v_loc(self) -> Array:
        """Mean of v."""
        return self.v.loc

    @property
    def v_log_sigma2(self) -> Array:
        """Natural log of the variance of v."""
        return self.v.log_sigma2

    @property
    def unit_loc(self) -> Array:
        """Mean of z, shaped to broadcast with the weight."""
        return self.along_units(self._unit_loc)

    @property
    def unit_log_sigma2(self) -> Array:
        """Natural log of the variance of z, shaped to broadcast with the weight."""
        return self.along_units(self._unit_log_sigma2)

    @property
    def log_alpha(self) -> Array:
        """Natural log of var(z) / E(z)**2, shaped to broadcast with the weight."""
        return self.along_units(log_alpha_additive(self._unit_loc, self._unit_log_sigma2))

    @property
    def variance(self) -> Array:
        """``var(z) * (E(v)**2 + var(v)) + E(z)**2 * var(v)``."""
        z_variance = self.along_units(jnp.exp(self._unit_log_sigma2))
        z_square = self.along_units(jnp.square(self._unit_loc))
        return z_variance * (jnp.square(self.v.loc) + self.v.variance) + z_square * self.v.variance

    def draw_units(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        noise = jax.random.normal(key, (*sample_shape, self.units), self.loc.dtype)
        return self._unit_loc + jnp.exp(0.5 * self._unit_log_sigma2) * noise

    def noise(self) -> WeightNoise:
        return WeightNoise(self.v.loc, self.v.variance, self.unit_dim, Partial(type(self).draw_units, self))


@register_kl(GroupNormal, Independent)
def _kl_group(q: GroupNormal, p: Independent) -> Array:
    prior_of_weight(q, p, ImproperLogUniform)
    standard = Normal(jnp.zeros_like(q.loc), 1.0, validate_args=False)
    z = kl_log_uniform(log_alpha_additive(q._unit_loc, q._unit_log_sigma2), q.kl)
    return jnp.broadcast_to(z, q.units).sum() + kl_divergence(q.v, standard).sum()
