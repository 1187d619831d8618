"""DropoutNormal, the Gaussian weight with independent elements, and its KL rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, constraints, register_kl

from pyro_vd.common.options import KL_METHODS, NormalKL, check_choice
from pyro_vd.common.options import LOG_UNIFORM_METHODS as LOG_UNIFORM_METHODS
from pyro_vd.common.shapes import check_value_shape, expanded_shape, sample_shape_of
from pyro_vd.estimators import WeightNoise
from pyro_vd.kl import kl_additive, kl_ard, kl_log_uniform, log_alpha_additive
from pyro_vd.posteriors.base import WeightPosterior, broadcast_parameters, real_arguments
from pyro_vd.priors import ImproperLogUniform
from pyro_vd.scoring import deferred_log_prob


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
            :func:`pyro_vd.kl.kl_log_uniform`, or "ard" for :func:`pyro_vd.kl.kl_ard` (the prior
            fitted to each weight).

    Raises:
        ValueError: both or neither of log_alpha and log_sigma2; shapes that do not broadcast; unknown kl.
        TypeError: loc is not a floating point tensor.

    Example:
        >>> q = DropoutNormal(torch.tensor([2.0]), log_sigma2=torch.tensor([0.0]))
        >>> q.log_alpha, q.dropout_rate
        (tensor([-1.3863]), tensor([0.2000]))

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 3; Molchanov et al. 2017, arXiv:1701.05369, equation 12.

    See also:
        :class:`pyro_vd.CorrelatedDropoutNormal`, :func:`pyro_vd.kl.kl_log_uniform`,
        :class:`pyro_vd.guides.AutoSparseVD`, :class:`pyro_vd.guides.AutoVariationalDropout`.
    """

    support: Any = constraints.real
    arg_constraints: Any = real_arguments("loc", "log_alpha", "log_sigma2")
    arguments = ("loc", "log_alpha", "log_sigma2")
    options = ("kl",)

    def __init__(
        self,
        loc: Tensor,
        log_alpha: Tensor | float | None = None,
        *,
        log_sigma2: Tensor | float | None = None,
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
        super().__init__(self.loc.shape, torch.Size(), validate_args)

    def given(self) -> dict[str, Tensor]:
        return {"loc": self.loc} | {name: value for name, value in self._given.items() if value is not None}

    @property
    def log_alpha(self) -> Tensor:
        """Natural log of ``variance / loc**2``; finite at loc = 0."""
        return self._whole(self._noise_ratio)

    def _whole(self, value: Tensor) -> Tensor:
        return value if value.shape == self.loc.shape else value.expand(self.loc.shape)

    @property
    def _noise_ratio(self) -> Tensor:
        """``log_alpha`` in the shape it was given: one KL serves the weights that share it."""
        if self._log_sigma2 is not None:
            return log_alpha_additive(self.loc, self._log_sigma2)
        assert self._log_alpha is not None
        return self._log_alpha

    @property
    def log_sigma2(self) -> Tensor:
        """Natural log of the variance; finite at loc = 0."""
        if self._log_sigma2 is None:
            assert self._log_alpha is not None
            return self._log_alpha - log_alpha_additive(self.loc, torch.zeros_like(self.loc))
        return self._whole(self._log_sigma2)

    @property
    def variance(self) -> Tensor:
        if self._log_sigma2 is None:
            assert self._log_alpha is not None
            return self._log_alpha.exp() * self.loc.square()
        return self._whole(self._log_sigma2.exp())

    @property
    def scale(self) -> Tensor:
        if self._log_sigma2 is None:
            assert self._log_alpha is not None
            return (0.5 * self._log_alpha).exp() * self.loc.abs()
        return self._whole((0.5 * self._log_sigma2).exp())

    def noise(self) -> WeightNoise:
        dtype = torch.promote_types(self.loc.dtype, torch.float32)
        if dtype == self.loc.dtype:
            return WeightNoise(self.loc, self.variance, draw=self.rsample)
        # A standard deviation of 1e-4 has a variance that is 0 in float16.
        given: Any = {name: None if value is None else value.to(dtype) for name, value in self._given.items()}
        return WeightNoise(self.loc, DropoutNormal(self.loc.to(dtype), **given).variance, draw=self.rsample)

    @property
    def _given(self) -> dict[str, Tensor | None]:
        return {"log_alpha": self._log_alpha, "log_sigma2": self._log_sigma2}

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DropoutNormal:
        batch_shape = expanded_shape(self, batch_shape)
        noise: Any = {name: None if v is None else v.expand(batch_shape) for name, v in self._given.items()}
        return DropoutNormal(self.loc.expand(batch_shape), **noise, kl=self.kl, validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape_of(self, sample_shape)))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        # |loc| rather than loc in the multiplicative scale: the same distribution.
        return self.loc + self.scale * noise

    def _normal(self) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.loc, self.scale, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if (deferred := deferred_log_prob(self, value)) is not None:
            return deferred
        check_value_shape(self, value.shape)
        if self._validate_args:
            self._validate_sample(value)
        return self._normal().log_prob(value)

    def cdf(self, value: Tensor) -> Tensor:
        return self._normal().cdf(value)

    def icdf(self, value: Tensor) -> Tensor:
        return self._normal().icdf(value)

    def entropy(self) -> Tensor:
        return self._normal().entropy()


@register_kl(DropoutNormal, ImproperLogUniform)
def _kl_dropout_normal_log_uniform(q: DropoutNormal, p: ImproperLogUniform) -> Tensor:
    if q._log_sigma2 is not None:
        kl = kl_additive(q.loc, q._log_sigma2, q.kl)
    else:
        kl = kl_ard(q._noise_ratio) if q.kl == "ard" else kl_log_uniform(q._noise_ratio, q.kl)
    return kl if kl.shape == p.batch_shape else kl.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


@register_kl(Normal, ImproperLogUniform)
def _kl_normal_log_uniform(q: Normal, p: ImproperLogUniform) -> Tensor:
    return _kl_dropout_normal_log_uniform(DropoutNormal(q.loc, log_sigma2=2 * q.scale.log()), p)


@register_kl(DropoutNormal, Normal)
def _kl_dropout_normal_normal(q: DropoutNormal, p: Normal) -> Tensor:
    """``0.5 * ((variance + (loc - prior loc)**2) / prior variance - 1 - log(variance / prior variance))``."""
    if q.kl == "ard":
        raise ValueError(
            "DropoutNormal: kl='ard' fits the variance of the prior to each weight, got a fixed Normal prior; write "
            "prior=ImproperLogUniform() in the model, or another kl (AutoMeanField instead of AutoARD)"
        )
    # In half precision a prior of scale 1e-4 would have the variance 0.
    dtype = torch.promote_types(p.scale.dtype, torch.float32)
    loc, prior_variance = p.loc.to(dtype), p.scale.to(dtype).square()
    return 0.5 * ((q.variance + (q.loc - loc).square()) / prior_variance - 1 - q.log_sigma2 + prior_variance.log())
