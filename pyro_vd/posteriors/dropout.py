"""Dropout of units as distributions of the weight: Gaussian (type B), binary and concrete, with their KL rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, constraints, register_kl

from pyro_vd.common.options import (
    LOG_UNIFORM_METHODS,
    LogUniformKL,
    check_choice,
    check_dropout_rate,
    check_number,
)
from pyro_vd.kl import kl_log_uniform
from pyro_vd.posteriors.base import prior_of_weight, real_arguments, sum_over_elements
from pyro_vd.posteriors.units import UnitPosterior, unit_values
from pyro_vd.priors import ImproperLogUniform


class CorrelatedDropoutNormal(UnitPosterior):
    """One Gaussian noise per unit, ``W = s * loc``, ``s_i ~ N(1, alpha_i)`` (Kingma's type B).

    The KL to the log-uniform prior is that of the s_i: one term per unit. Under "local" every row of
    the input has noise of its own, as dropout on activations.

    Args:
        loc: mean of the weight, two dimensions or more.
        log_alpha: natural log of alpha; one number, shape ``(units,)``, or a shape that broadcasts with
            ``loc`` with size 1 off the units.
        unit_dim: where the units lie; 1 are the input units of Linear and ConvNd weights.
        kl: a method of :func:`pyro_vd.kl.kl_log_uniform`.

    Raises:
        ValueError: log_alpha of another shape; no such dimension; unknown kl.

    Example:
        >>> q = CorrelatedDropoutNormal(torch.ones(2, 3), torch.zeros(3))
        >>> (q.rsample().std(0) == 0).all()
        tensor(True)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 3.2 and appendix B.

    See also:
        :class:`pyro_vd.DropoutNormal`, :class:`pyro_vd.guides.AutoVariationalDropout`.
    """

    arg_constraints: Any = real_arguments("loc", "log_alpha")
    arguments = ("loc", "log_alpha")
    options = ("unit_dim", "kl")

    def __init__(
        self,
        loc: Tensor,
        log_alpha: Tensor | float,
        *,
        unit_dim: int = 1,
        kl: LogUniformKL = "sigmoid",
        validate_args: bool | None = None,
    ):
        super().__init__(loc, unit_dim)
        self.kl = check_choice("kl", kl, LOG_UNIFORM_METHODS, type(self).__name__)
        self._log_alpha = unit_values(self, "log_alpha", log_alpha)
        self._validate(validate_args)

    @property
    def log_alpha(self) -> Tensor:
        """Natural log of alpha, shaped to broadcast with the weight."""
        return self.along_units(self._log_alpha)

    @property
    def variance(self) -> Tensor:
        return self.log_alpha.exp() * self.loc.square()

    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        noise = torch.randn((*sample_shape, self.units), dtype=self.loc.dtype, device=self.loc.device)
        return 1 + (0.5 * self._log_alpha).exp() * noise

    def kl_to(self, prior: Independent, free: Tensor | None = None) -> Tensor:
        prior_of_weight(self, prior, ImproperLogUniform)
        return self.sum_over_units(kl_log_uniform(self._log_alpha, self.kl), free)


class BernoulliDropout(UnitPosterior):
    """Binary dropout as a weight, ``W = loc * z / (1 - dropout_rate)``, ``z_i ~ Bernoulli(1 - dropout_rate)``.

    Its KL to a Normal prior is the first-order form of Gal and Ghahramani; its KL to the log-uniform prior does not
    depend on ``loc`` (that is what this prior is for), and its constant is dropped: 0.

    Args:
        loc: mean of the weight.
        dropout_rate: probability of dropping a unit, in [0, 1): a number or shape ``(units,)``. It cannot be learned:
            it chooses masks, and what it does to them has no reparameterised gradient.
        unit_dim: where the units lie; 1 are the input units of Linear and ConvNd weights.

    Raises:
        ValueError: a rate outside [0, 1) (that of a tensor is checked where Pyro validates, or with
            ``validate_args=True``); under "local" or "per_example" a rate with a gradient.

    Example:
        >>> q = BernoulliDropout(torch.ones(2, 3), 0.5)
        >>> q.variance[0]
        tensor([1., 1., 1.])

    References:
        Srivastava et al. 2014; Gal and Ghahramani 2016, arXiv:1506.02142, section 3.

    See also:
        :class:`pyro_vd.guides.AutoBernoulliDropout`, :class:`pyro_vd.ConcreteDropout`.
    """

    arg_constraints: Any = {"loc": constraints.real, "dropout_rate": constraints.half_open_interval(0.0, 1.0)}
    arguments = ("loc", "dropout_rate")
    options = ("unit_dim",)
    # why has_rsample is False where it is: for the error about a guide
    _no_rsample = (
        "a dropout_rate with a gradient, which chooses masks and so has no reparameterised one; write "
        "dropout_rate.detach(), or learn it with ConcreteDropout"
    )

    def __init__(
        self, loc: Tensor, dropout_rate: Tensor | float, *, unit_dim: int = 1, validate_args: bool | None = None
    ):
        super().__init__(loc, unit_dim)
        if not isinstance(dropout_rate, (Tensor, list, tuple)) and getattr(dropout_rate, "ndim", 0) == 0:
            check_dropout_rate(type(self).__name__, dropout_rate)
        self._dropout_rate = unit_values(self, "dropout_rate", dropout_rate)
        self._validate(validate_args)
        if self._validate_args and not self._dropout_rate.is_meta:
            within = (self._dropout_rate >= 0) & (self._dropout_rate < 1)
            if not bool(within.all()):
                check_dropout_rate(type(self).__name__, self._dropout_rate[~within][0])

    @property
    def has_rsample(self) -> bool:
        return not self._dropout_rate.requires_grad

    @property
    def dropout_rate(self) -> Tensor:
        """Probability of dropping, shaped to broadcast with the weight."""
        return self.along_units(self._dropout_rate)

    @property
    def log_alpha(self) -> Tensor:
        """``log(p / (1 - p))``, the noise ratio of the Gaussian with the same variance."""
        return torch.logit(self.dropout_rate)

    @property
    def variance(self) -> Tensor:
        rate = self.dropout_rate
        return rate / (1 - rate) * self.loc.square()

    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        if self._dropout_rate.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"BernoulliDropout: expected a dropout_rate that is given, got {self._no_rsample}")
        uniform = torch.rand((*sample_shape, self.units), dtype=self.loc.dtype, device=self.loc.device)
        return (uniform >= self._dropout_rate).to(self.loc.dtype) / (1 - self._dropout_rate)

    def kl_to(self, prior: Independent, free: Tensor | None = None) -> Tensor:
        p = prior_of_weight(self, prior, ImproperLogUniform, Normal)
        if isinstance(p, Normal):
            return _kl_binary(self, self._dropout_rate, p, free)
        return torch.zeros((), dtype=self.loc.dtype, device=self.loc.device)


class ConcreteDropout(UnitPosterior):
    """Binary dropout with a rate that can be learned, its noise relaxed to the concrete distribution.

    ``s = sigmoid((logit(1 - p) + logit(u)) / temperature) / (1 - p)``, u uniform: 0/1 in the limit of a low
    temperature. ``loc`` is the mean of that limit.

    Args:
        loc: mean of the weight.
        logit_dropout_rate: ``log(p / (1 - p))``, a number or shape ``(units,)`` or size 1.
        temperature: of the relaxation, > 0.
        unit_dim: where the units lie.

    Raises:
        ValueError: a temperature <= 0.

    Example:
        >>> ConcreteDropout(torch.ones(2, 3), torch.zeros(1)).dropout_rate.squeeze()
        tensor(0.5000)

    References:
        Gal, Hron, Kendall 2017, arXiv:1705.07832, equations 3 and 4.

    See also:
        :class:`pyro_vd.guides.AutoConcreteDropout`, :class:`pyro_vd.BernoulliDropout`.
    """

    arg_constraints: Any = real_arguments("loc", "logit_dropout_rate")
    arguments = ("loc", "logit_dropout_rate")
    options = ("temperature", "unit_dim")

    def __init__(
        self,
        loc: Tensor,
        logit_dropout_rate: Tensor | float,
        *,
        temperature: float = 0.1,
        unit_dim: int = 1,
        validate_args: bool | None = None,
    ):
        super().__init__(loc, unit_dim)
        self.temperature = check_number("temperature", temperature, above=0, owner="ConcreteDropout")
        self._logit_dropout_rate = unit_values(self, "logit_dropout_rate", logit_dropout_rate)
        self._validate(validate_args)

    @property
    def logit_dropout_rate(self) -> Tensor:
        """``log(p / (1 - p))``, shaped to broadcast with the weight."""
        return self.along_units(self._logit_dropout_rate)

    @property
    def log_alpha(self) -> Tensor:
        """``logit_dropout_rate``: the noise ratio of the Gaussian that has the variance of the binary limit."""
        return self.logit_dropout_rate

    @property
    def variance(self) -> Tensor:
        """Of the binary limit, ``p / (1 - p) * loc**2``."""
        return self.log_alpha.exp() * self.loc.square()

    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        uniform = torch.rand((*sample_shape, self.units), dtype=self.loc.dtype, device=self.loc.device)
        tiny = torch.finfo(uniform.dtype).eps
        kept = torch.sigmoid((torch.logit(uniform, eps=tiny) - self._logit_dropout_rate) / self.temperature)
        return kept / torch.sigmoid(-self._logit_dropout_rate)

    def kl_to(self, prior: Independent, free: Tensor | None = None) -> Tensor:
        p = prior_of_weight(self, prior, Normal)
        return _kl_binary(self, torch.sigmoid(self._logit_dropout_rate), p, free)


@register_kl(CorrelatedDropoutNormal, Independent)
@register_kl(BernoulliDropout, Independent)
@register_kl(ConcreteDropout, Independent)
def _kl_of_units(q: UnitPosterior, p: Independent) -> Tensor:
    return q.kl_to(p)


def _kl_binary(q: UnitPosterior, rate: Tensor, p: Normal, free: Tensor | None) -> Tensor:
    """``sum ((1 - p) * (loc / (1 - p) - m)**2 + p * m**2) / (2 * variance) - sum over units of H(p)``

    Gal and Ghahramani 2016, appendix, and Gal, Hron, Kendall 2017, equation 4, for weights
    ``loc * z / (1 - p)`` and a prior N(m, variance). The formula leaves out a constant that depends on the variance of
    the prior, so that it cannot be learned by it.
    """
    if p.scale.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{type(q).__name__}: expected a Normal prior with a scale that is given, got one with a gradient, which "
            "the published KL of dropout leaves a term out of; write scale.detach(), or learn it with DropoutNormal "
            "(AutoMeanField)"
        )
    drop = q.along_units(rate)
    kept = q.loc / (1 - drop)
    square = (1 - drop) * (kept - p.loc).square() + drop * p.loc.square()
    entropy = -(torch.special.xlogy(rate, rate) + torch.special.xlogy(1 - rate, 1 - rate))
    return sum_over_elements(square / (2 * p.scale.square()), free) - q.sum_over_units(entropy, free)
