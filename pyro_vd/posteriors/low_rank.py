"""LowRankNormal, the Gaussian weight with a diagonal plus low-rank covariance, and its KL rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    constraints,
    kl_divergence,
    register_kl,
)

from pyro_vd.common.options import KL_METHODS, NormalKL, check_choice, check_rank
from pyro_vd.common.shapes import check_one_weight, check_value_shape, sample_shape_of
from pyro_vd.estimators import WeightNoise
from pyro_vd.kl import log_alpha_additive
from pyro_vd.posteriors.base import (
    WeightPosterior,
    broadcast_parameters,
    check_tensor,
    prior_of_weight,
    real_arguments,
    sum_over_elements,
)
from pyro_vd.posteriors.normal import DropoutNormal


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
        >>> q = LowRankNormal(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(1, 2, 3))
        >>> q.variance[0]
        tensor([2., 2., 2.])

    References:
        Kingma et al. 2015 for the diagonal part; Ong, Nott, Smith 2018, arXiv:1701.03208, for the family.

    See also:
        :class:`pyro_vd.guides.AutoLowRank`.
    """

    estimators = ("local", "shared", "per_example")
    arg_constraints: Any = real_arguments("loc", "log_sigma2", "factor")
    arguments = ("loc", "log_sigma2", "factor")
    options = ("kl",)

    def __init__(
        self,
        loc: Tensor,
        log_sigma2: Tensor | float,
        factor: Tensor,
        *,
        kl: NormalKL = "sigmoid",
        validate_args: bool | None = None,
    ):
        self.loc, log_sigma2 = broadcast_parameters("LowRankNormal", loc, "log_sigma2", log_sigma2)
        self._log_sigma2 = log_sigma2.expand(self.loc.shape)
        check_tensor("LowRankNormal", "factor", factor)
        if factor.dim() != self.loc.dim() + 1 or factor.shape[1:] != self.loc.shape:
            raise ValueError(
                f"LowRankNormal: expected factor of shape (rank, *{tuple(self.loc.shape)}), got {tuple(factor.shape)}"
            )
        check_rank("LowRankNormal", factor.shape[0], self.loc.numel())
        self.factor = factor
        self.kl = check_choice("kl", kl, KL_METHODS, "LowRankNormal")
        super().__init__(torch.Size(), self.loc.shape, validate_args)

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[torch.Size, torch.Size]:
        """Batch and event shape of a distribution with arguments of these shapes."""
        return torch.Size(), torch.broadcast_shapes(arg_shapes["loc"], arg_shapes.get("log_sigma2", ()))

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.loc.dim())

    @property
    def log_sigma2(self) -> Tensor:
        """Natural log of the variance of the diagonal part alone."""
        return self._log_sigma2

    @property
    def variance(self) -> Tensor:
        """Of each weight: diagonal plus low-rank part."""
        return self._log_sigma2.exp() + self.factor.square().sum(0)

    @property
    def log_alpha(self) -> Tensor:
        """Natural log of ``variance / loc**2``."""
        return log_alpha_additive(self.loc, self.variance.log())

    @property
    def log_det_covariance(self) -> Tensor:
        """``sum log_sigma2 + log det(I + U D^-1 U^T)``, with an R x R determinant."""
        rank = self.factor.shape[0]
        scaled = (self.factor * (-0.5 * self._log_sigma2).exp()).reshape(rank, -1)
        inner = scaled @ scaled.mT + torch.eye(rank, dtype=scaled.dtype, device=scaled.device)
        return self._log_sigma2.sum() + 2 * torch.linalg.cholesky(inner).diagonal().log().sum()

    def noise(self) -> WeightNoise:
        return WeightNoise(self.loc, self._log_sigma2.exp(), self.rsample, factor=self.factor)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LowRankNormal:
        check_one_weight(self, batch_shape)
        return self

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        sample_shape = sample_shape_of(self, sample_shape)
        options: Any = {"dtype": self.loc.dtype, "device": self.loc.device}
        diagonal = torch.randn((*sample_shape, *self.loc.shape), **options) * (0.5 * self._log_sigma2).exp()
        z = torch.randn((*sample_shape, self.factor.shape[0]), **options)
        return self.loc + diagonal + torch.tensordot(z, self.factor, dims=1)

    def log_prob(self, value: Tensor) -> Tensor:
        check_value_shape(self, value.shape)
        if self._validate_args:
            self._validate_sample(value)
        value = value.expand(torch.broadcast_shapes(value.shape, self.loc.shape))
        return self._flat().log_prob(value.reshape(*value.shape[: value.dim() - self.loc.dim()], -1))

    def entropy(self) -> Tensor:
        return self._flat().entropy()

    def kl_to(self, prior: Independent, free: Tensor | None = None) -> Tensor:
        """KL to the prior of the whole weight, of the elements where ``free`` is True, or of all; nats, 0-dim."""
        p = prior_of_weight(self, prior, Distribution)
        # An element without a factor is independent of the others, and has no part in the total correlation.
        factor = self.factor if free is None else torch.where(free, self.factor, 0.0)
        q = self if free is None else LowRankNormal(self.loc, self._log_sigma2, factor, kl=self.kl)
        marginal = DropoutNormal(q.loc, log_sigma2=q.variance.log(), kl=q.kl)
        total_correlation = 0.5 * (q.variance.log().sum() - q.log_det_covariance)
        return sum_over_elements(kl_divergence(marginal, p), free) + total_correlation

    def _flat(self) -> LowRankMultivariateNormal:
        factor = self.factor.reshape(self.factor.shape[0], -1).mT
        return LowRankMultivariateNormal(
            self.loc.reshape(-1), factor, self._log_sigma2.exp().reshape(-1), validate_args=False
        )


@register_kl(LowRankNormal, Independent)
def _kl_low_rank(q: LowRankNormal, p: Independent) -> Tensor:
    return q.kl_to(p)
