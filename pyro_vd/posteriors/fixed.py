"""PartlyFixed: a random weight some of whose elements are constants, and the KL of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints, kl_divergence, register_kl

from pyro_vd.common.shapes import expanded_shape, sample_shape_of
from pyro_vd.estimators import WeightNoise
from pyro_vd.fixed import Fixed, pinned
from pyro_vd.posteriors.base import WeightPosterior
from pyro_vd.scoring import deferred_log_prob


class PartlyFixed(WeightPosterior):
    """A posterior with some elements of the weight replaced by constants, which have no noise and no KL.

    Made for the sites of a :class:`pyro_vd.BayesianModule` where a layer keeps elements fixed.

    Args:
        free: the posterior of the whole weight.
        fixed: which elements are constants.

    Example:
        >>> from pyro_vd.posteriors import DropoutNormal
        >>> q = PartlyFixed(DropoutNormal(torch.ones(2), log_sigma2=0.0), Fixed(torch.tensor([True, False]), 0.0))
        >>> q.mean, q.variance
        (tensor([0., 1.]), tensor([0., 1.]))
    """

    arg_constraints: Any = {}

    def __init__(self, free: WeightPosterior, fixed: Fixed):
        self.free, self.fixed = free, fixed
        self.estimators = free.estimators
        self.loc = fixed.imposed_on(free.loc)
        super().__init__(free.batch_shape, free.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.free.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return self.free.support  # type: ignore[return-value]

    @property
    def variance(self) -> Tensor:
        return self.fixed.zero_in(self.free.variance)

    @property
    def log_alpha(self) -> Tensor:
        """Natural log of the noise ratio; of a constant minus infinity, or infinity where that is 0."""
        return with_fixed_ratio(self.free.log_alpha, self.fixed)

    @property
    def log_sigma2(self) -> Tensor:
        """Natural log of the variance, in families that have it; of a constant minus infinity."""
        return torch.where(self.fixed.mask, -math.inf, self.free.log_sigma2)  # type: ignore[attr-defined]

    def given(self) -> dict[str, Tensor]:
        return {**self.free.given(), "loc": self.loc}

    def noise(self) -> WeightNoise:
        return pinned(self.free.noise(), self.fixed.mask, self.fixed.value)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PartlyFixed:
        return PartlyFixed(self.free.expand(torch.Size(expanded_shape(self.free, batch_shape))), self.fixed)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.fixed.imposed_on(self.free.rsample(torch.Size(sample_shape_of(self.free, sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """That of the elements that are not fixed, 0 for the others."""
        if (deferred := deferred_log_prob(self, value)) is not None:
            return deferred
        if self.free.event_shape:
            raise NotImplementedError(
                f"{type(self.free).__name__} with fixed elements: expected a use of its analytic KL, got a use of "
                "log_prob; choose a prior with a KL rule, or DropoutNormal"
            )
        return self.fixed.zero_in(self.free.log_prob(value))


def with_fixed(q: Any, fixed: Fixed | None) -> Any:
    """A posterior, with any ``to_event``, some of whose elements are fixed."""
    base = q.base_dist if isinstance(q, Independent) else q
    if fixed is None or not isinstance(base, WeightPosterior) or isinstance(base, PartlyFixed):
        return q
    base = PartlyFixed(base, fixed)
    return base.to_event(q.reinterpreted_batch_ndims) if isinstance(q, Independent) else base


def with_fixed_ratio(log_alpha: Tensor, fixed: Fixed | None) -> Tensor:
    """The log noise ratio of a weight some of whose elements are fixed; see :attr:`PartlyFixed.log_alpha`."""
    if fixed is None:
        return log_alpha
    zero = torch.as_tensor(fixed.value, device=log_alpha.device) == 0
    return torch.where(fixed.mask, torch.where(zero, math.inf, -math.inf).to(log_alpha.dtype), log_alpha)


def is_by_element(fn: Any) -> bool:
    """Whether a distribution of a whole weight has its elements independent, so that some can be left out."""
    return isinstance(fn, Independent) and not fn.base_dist.event_shape and not fn.batch_shape


def kl_of_free_elements(q: Any, p: Any, fixed: Fixed) -> Tensor:
    """KL(q || p) without the elements that are fixed, for a distribution q of any kind over the weight."""
    q = with_fixed(q, fixed)
    if not (isinstance(q, Independent) and isinstance(p, Independent)) or isinstance(q.base_dist, WeightPosterior):
        return kl_divergence(q, p)
    return fixed.zero_in(kl_divergence(q.base_dist, p.base_dist)).sum()


@register_kl(PartlyFixed, Distribution)
def _kl_by_element(q: PartlyFixed, p: Distribution) -> Tensor:
    return q.fixed.zero_in(kl_divergence(q.free, p))


@register_kl(PartlyFixed, Independent)
def _kl_of_whole_weight(q: PartlyFixed, p: Independent) -> Tensor:
    return q.free.kl_to(p, ~q.fixed.mask.expand(q.loc.shape))  # type: ignore[attr-defined]
