"""GroupNormal, the Gaussian weight with a random scale per unit, and its KL rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence, register_kl

from pyro_vd.common.options import LOG_UNIFORM_METHODS, LogUniformKL, check_choice
from pyro_vd.common.shapes import sample_shape_of
from pyro_vd.estimators import WeightNoise
from pyro_vd.kl import kl_log_uniform, log_alpha_additive
from pyro_vd.posteriors.base import (
    broadcast_parameters,
    check_tensor,
    prior_of_weight,
    real_arguments,
    sum_over_elements,
)
from pyro_vd.posteriors.normal import DropoutNormal
from pyro_vd.posteriors.units import UnitPosterior, unit_values
from pyro_vd.priors import ImproperLogUniform


class GroupNormal(UnitPosterior):
    """A Gaussian weight with a random scale per unit, ``W = z * v``, ``z_i ~ N(.)``, ``v ~ N(.)`` elementwise.

    With the log-uniform prior on the weight read as the scale mixture it is, p(z) ~ 1 / |z| and
    ``w | z ~ N(0, z**2)`` (normal-Jeffreys), the KL is ``kl_log_uniform(log_alpha)`` per unit plus KL(v || N(0, 1)) per
    weight. ``log_alpha`` is that of z: a unit above the threshold is pruned whole.

    Args:
        v_loc, v_log_sigma2: mean and log-variance of v, shape of the weight.
        unit_loc, unit_log_sigma2: mean and log-variance of z, shape ``(units,)``.
        unit_dim: where the units lie: 1 prunes input units, 0 output units (filters).
        kl: a method of :func:`pyro_vd.kl.kl_log_uniform`.

    Raises:
        ValueError: shapes that do not fit; unknown kl.

    Example:
        >>> q = GroupNormal(torch.ones(2, 3), torch.zeros(2, 3), torch.ones(3), torch.zeros(3))
        >>> q.variance[0]
        tensor([3., 3., 3.])

    References:
        Louizos, Ullrich, Welling 2017, arXiv:1705.08665, equations 7-9 and appendix A.

    See also:
        :class:`pyro_vd.guides.AutoGroupSparse`.
    """

    arg_constraints: Any = real_arguments("v_loc", "v_log_sigma2", "unit_loc", "unit_log_sigma2")
    arguments = ("v_loc", "v_log_sigma2", "unit_loc", "unit_log_sigma2")
    options = ("unit_dim", "kl")

    def __init__(
        self,
        v_loc: Tensor,
        v_log_sigma2: Tensor,
        unit_loc: Tensor,
        unit_log_sigma2: Tensor,
        *,
        unit_dim: int = 1,
        kl: LogUniformKL = "sigmoid",
        validate_args: bool | None = None,
    ):
        check_tensor("GroupNormal", "v_loc", v_loc)
        v_loc, v_log_sigma2 = broadcast_parameters("GroupNormal", v_loc, "v_log_sigma2", v_log_sigma2)
        super().__init__(v_loc, unit_dim)
        self.v = DropoutNormal(v_loc, log_sigma2=v_log_sigma2)
        self.kl = check_choice("kl", kl, LOG_UNIFORM_METHODS, "GroupNormal")
        self._unit_loc = unit_values(self, "unit_loc", unit_loc)
        self._unit_log_sigma2 = unit_values(self, "unit_log_sigma2", unit_log_sigma2)
        self.loc = self.along_units(self._unit_loc) * v_loc
        self._validate(validate_args)

    @property
    def v_loc(self) -> Tensor:
        """Mean of v."""
        return self.v.loc

    @property
    def v_log_sigma2(self) -> Tensor:
        """Natural log of the variance of v."""
        return self.v.log_sigma2

    @property
    def unit_loc(self) -> Tensor:
        """Mean of z, shaped to broadcast with the weight."""
        return self.along_units(self._unit_loc)

    @property
    def unit_log_sigma2(self) -> Tensor:
        """Natural log of the variance of z, shaped to broadcast with the weight."""
        return self.along_units(self._unit_log_sigma2)

    @property
    def log_alpha(self) -> Tensor:
        """Natural log of var(z) / E(z)**2, shaped to broadcast with the weight."""
        return self.along_units(log_alpha_additive(self._unit_loc, self._unit_log_sigma2))

    @property
    def variance(self) -> Tensor:
        """``var(z) * (E(v)**2 + var(v)) + E(z)**2 * var(v)``."""
        z_variance = self.along_units(self._unit_log_sigma2.exp())
        z_square = self.along_units(self._unit_loc.square())
        return z_variance * (self.v.loc.square() + self.v.variance) + z_square * self.v.variance

    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        noise = torch.randn((*sample_shape, self.units), dtype=self.loc.dtype, device=self.loc.device)
        return self._unit_loc + (0.5 * self._unit_log_sigma2).exp() * noise

    def noise(self) -> WeightNoise:
        return WeightNoise(self.v.loc, self.v.variance, self.rsample, self.unit_dim, self.draw_units)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape_of(self, sample_shape))
        return self.along_units(self.draw_units(shape)) * self.v.rsample(shape)

    def kl_to(self, prior: Independent, free: Tensor | None = None) -> Tensor:
        prior_of_weight(self, prior, ImproperLogUniform)
        standard = Normal(torch.zeros_like(self.loc), 1.0, validate_args=False)
        z = kl_log_uniform(log_alpha_additive(self._unit_loc, self._unit_log_sigma2), self.kl)
        return self.sum_over_units(z, free) + sum_over_elements(kl_divergence(self.v, standard), free)


@register_kl(GroupNormal, Independent)
def _kl_group(q: GroupNormal, p: Independent) -> Tensor:
    return q.kl_to(p)
