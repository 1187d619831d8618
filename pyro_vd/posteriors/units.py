"""Weights whose noise is shared by a whole unit, ``W = s * theta`` with one s per unit of the weight.

The distribution is over the whole weight, as its elements are not independent: it is an event of the shape of
``loc``, without ``to_event``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, constraints, kl_divergence, register_kl

from pyro_vd.estimators import WeightNoise
from pyro_vd.kl import kl_log_uniform, log_alpha_additive
from pyro_vd.posteriors.base import WeightPosterior, broadcast_parameters, prior_of_weight
from pyro_vd.posteriors.normal import KL_METHODS, DropoutNormal
from pyro_vd.priors import ImproperLogUniform


class UnitPosterior(WeightPosterior):
    """Abstract: ``W = s * (theta + sqrt(variance of theta) * e)``, s of mean 1 or another, one per unit.

    Attributes:
        loc: mean of the weight.
        unit_dim: the dimension of the weight along which its units lie; 1 are the input units of Linear and ConvNd
            weights, 0 their output units.
    """

    estimators = ("local", "shared", "per_example")
    unit_dim: int

    def __init__(self, loc: Tensor, unit_dim: int, validate_args: bool | None = None):
        if not isinstance(loc, Tensor) or not loc.is_floating_point():
            broadcast_parameters(type(self).__name__, loc, "unit_dim", 0.0)
        if not -loc.dim() <= unit_dim < loc.dim():
            raise ValueError(
                f"{type(self).__name__}: expected a weight with dimension {unit_dim} for its units, got loc of shape "
                f"{tuple(loc.shape)}; give unit_dim, or use DropoutNormal, whose noise needs no units"
            )
        self.loc = loc
        self.unit_dim = unit_dim % loc.dim()
        super().__init__(torch.Size(), loc.shape, validate_args=validate_args)

    @property
    def units(self) -> int:
        """Number of units."""
        return self.loc.shape[self.unit_dim]

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.loc.dim())

    @abstractmethod
    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        """Draws of s, shape ``sample_shape + (units,)``."""

    def noise(self) -> WeightNoise:
        return WeightNoise(self.loc, None, self.rsample, self.unit_dim, self.draw_units)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.along_units(self.draw_units(torch.Size(sample_shape))) * self.loc

    def along_units(self, values: Tensor) -> Tensor:
        """Values of shape ``(..., units)`` or ``(..., 1)``, shaped to broadcast with the weight."""
        return values.reshape(*values.shape[:-1], *self._unit_shape(values.shape[-1]))

    def _unit_shape(self, units: int) -> tuple[int, ...]:
        """The shape of the weight with 1 in place of every dimension but that of the units."""
        return (*(1,) * self.unit_dim, units, *(1,) * (self.loc.dim() - self.unit_dim - 1))

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> UnitPosterior:
        if tuple(batch_shape):
            raise ValueError(
                f"{type(self).__name__}: expected one weight, got a batch of shape {tuple(batch_shape)}; sample it outside "
                "of every plate"
            )
        return self

    def log_prob(self, value: Tensor) -> NoReturn:
        raise ValueError(
            f"{type(self).__name__}: expected a use of its analytic KL, got a use of log_prob: the weight lies on a surface "
            "of fewer dimensions than it has elements and has no density; choose a prior with a KL rule "
            "(ImproperLogUniform or Normal), or DropoutNormal"
        )


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
    """

    def __init__(
        self,
        loc: Tensor,
        log_alpha: Tensor | float,
        *,
        unit_dim: int = 1,
        kl: str = "sigmoid",
        validate_args: bool | None = None,
    ):
        super().__init__(loc, unit_dim, validate_args)
        if kl not in KL_METHODS[:-1]:
            raise ValueError(f"{type(self).__name__}: expected kl to be one of {KL_METHODS[:-1]}, got {kl!r}")
        self._log_alpha = _unit_values(self, "log_alpha", log_alpha)
        self.kl = kl

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


class BernoulliDropout(UnitPosterior):
    """Binary dropout as a weight, ``W = loc * z / (1 - dropout_rate)``, ``z_i ~ Bernoulli(1 - dropout_rate)``.

    Its KL to a Normal prior is the first-order form of Gal and Ghahramani; its KL to the log-uniform prior does not
    depend on ``loc`` (that is what this prior is for), and its constant is dropped: 0.

    Args:
        loc: mean of the weight.
        dropout_rate: probability of dropping a unit, in [0, 1): a number or shape ``(units,)``.
        unit_dim: where the units lie; 1 are the input units of Linear and ConvNd weights.

    Raises:
        ValueError: a rate outside [0, 1).

    Example:
        >>> q = BernoulliDropout(torch.ones(2, 3), 0.5)
        >>> q.variance[0]
        tensor([1., 1., 1.])

    References:
        Srivastava et al. 2014; Gal and Ghahramani 2016, arXiv:1506.02142, section 3.
    """

    def __init__(
        self, loc: Tensor, dropout_rate: Tensor | float, *, unit_dim: int = 1, validate_args: bool | None = None
    ):
        super().__init__(loc, unit_dim, validate_args)
        if isinstance(dropout_rate, (int, float)):
            check_dropout_rate(type(self).__name__, dropout_rate)
        self._rate = _unit_values(self, "dropout_rate", dropout_rate)

    @property
    def dropout_rate(self) -> Tensor:
        """Probability of dropping, shaped to broadcast with the weight."""
        return self.along_units(self._rate)

    @property
    def log_alpha(self) -> Tensor:
        """``log(p / (1 - p))``, the noise ratio of the Gaussian with the same variance."""
        return torch.logit(self.dropout_rate)

    @property
    def variance(self) -> Tensor:
        rate = self.dropout_rate
        return rate / (1 - rate) * self.loc.square()

    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        uniform = torch.rand((*sample_shape, self.units), dtype=self.loc.dtype, device=self.loc.device)
        return (uniform >= self._rate).to(self.loc.dtype) / (1 - self._rate)


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
    """

    def __init__(
        self,
        loc: Tensor,
        logit_dropout_rate: Tensor | float,
        *,
        temperature: float = 0.1,
        unit_dim: int = 1,
        validate_args: bool | None = None,
    ):
        super().__init__(loc, unit_dim, validate_args)
        if not temperature > 0:
            raise ValueError(f"ConcreteDropout: expected temperature > 0, got {temperature!r}")
        self._logit_rate = _unit_values(self, "logit_dropout_rate", logit_dropout_rate)
        self.temperature = temperature

    @property
    def log_alpha(self) -> Tensor:
        """``logit_dropout_rate``: the noise ratio of the Gaussian that has the variance of the binary limit."""
        return self.along_units(self._logit_rate)

    @property
    def variance(self) -> Tensor:
        """Of the binary limit, ``p / (1 - p) * loc**2``."""
        return self.log_alpha.exp() * self.loc.square()

    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        uniform = torch.rand((*sample_shape, self.units), dtype=self.loc.dtype, device=self.loc.device)
        tiny = torch.finfo(uniform.dtype).eps
        kept = torch.sigmoid((torch.logit(uniform, eps=tiny) - self._logit_rate) / self.temperature)
        return kept / torch.sigmoid(-self._logit_rate)


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
    """

    def __init__(
        self,
        v_loc: Tensor,
        v_log_sigma2: Tensor,
        unit_loc: Tensor,
        unit_log_sigma2: Tensor,
        *,
        unit_dim: int = 1,
        kl: str = "sigmoid",
        validate_args: bool | None = None,
    ):
        super().__init__(v_loc, unit_dim, validate_args)
        self.v = DropoutNormal(v_loc, log_sigma2=v_log_sigma2)
        self.kl = kl
        if kl not in KL_METHODS[:-1]:
            raise ValueError(f"GroupNormal: expected kl to be one of {KL_METHODS[:-1]}, got {kl!r}")
        self._unit_loc = _unit_values(self, "unit_loc", unit_loc)
        self._unit_log_sigma2 = _unit_values(self, "unit_log_sigma2", unit_log_sigma2)
        self.loc = self.along_units(self._unit_loc) * v_loc

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

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.along_units(self.draw_units(torch.Size(sample_shape))) * self.v.rsample(sample_shape)


def check_dropout_rate(owner: str, rate: float) -> float:
    """The rate, or an error that names ``owner``."""
    if not 0 <= rate < 1:
        raise ValueError(
            f"{owner}: expected dropout_rate in [0, 1), the probability of dropping, got {rate!r}; a probability of "
            "keeping is 1 - dropout_rate"
        )
    return float(rate)


def _unit_values(posterior: UnitPosterior, name: str, value: Tensor | float) -> Tensor:
    """One value for each unit, shape ``(units,)``, or one for all, shape ``(1,)``."""
    loc, units = posterior.loc, posterior.units
    value = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=loc.dtype, device=loc.device)
    if value.numel() == 1:
        return value.reshape(1)
    padded = (1,) * (loc.dim() - value.dim()) + tuple(value.shape)
    if tuple(value.shape) == (units,) or padded == posterior._unit_shape(units):
        return value.reshape(units)
    raise ValueError(
        f"{type(posterior).__name__}: expected {name} to be one number or of shape ({units},), one for each unit along "
        f"dimension {posterior.unit_dim} of loc of shape {tuple(loc.shape)}, got shape {tuple(value.shape)}"
    )


@register_kl(CorrelatedDropoutNormal, Independent)
def _kl_correlated(q: CorrelatedDropoutNormal, p: Independent) -> Tensor:
    prior_of_weight(q, p, ImproperLogUniform)
    return kl_log_uniform(q._log_alpha, q.kl).expand(q.units).sum()


@register_kl(GroupNormal, Independent)
def _kl_group(q: GroupNormal, p: Independent) -> Tensor:
    prior_of_weight(q, p, ImproperLogUniform)
    standard = Normal(torch.zeros_like(q.loc), 1.0, validate_args=False)
    z = kl_log_uniform(log_alpha_additive(q._unit_loc, q._unit_log_sigma2), q.kl).expand(q.units)
    return z.sum() + kl_divergence(q.v, standard).sum()


@register_kl(BernoulliDropout, Independent)
def _kl_bernoulli(q: BernoulliDropout, p: Independent) -> Tensor:
    prior = prior_of_weight(q, p, ImproperLogUniform, Normal)
    if isinstance(prior, Normal):
        return _kl_binary(q, q._rate, prior)
    return torch.zeros((), dtype=q.loc.dtype, device=q.loc.device)


@register_kl(ConcreteDropout, Independent)
def _kl_concrete(q: ConcreteDropout, p: Independent) -> Tensor:
    return _kl_binary(q, torch.sigmoid(q._logit_rate), prior_of_weight(q, p, Normal))


def _kl_binary(q: UnitPosterior, rate: Tensor, p: Normal) -> Tensor:
    """``sum ((1 - p) * (loc / (1 - p) - m)**2 + p * m**2) / (2 * variance) - sum over units of H(p)``, up to a constant.

    Gal and Ghahramani 2016, appendix, and Gal, Hron, Kendall 2017, equation 4, for weights
    ``loc * z / (1 - p)`` and a prior N(m, variance).
    """
    drop = q.along_units(rate)
    kept = q.loc / (1 - drop)
    square = (1 - drop) * (kept - p.loc).square() + drop * p.loc.square()
    entropy = -(torch.special.xlogy(rate, rate) + torch.special.xlogy(1 - rate, 1 - rate))
    return (square / (2 * p.scale.square())).sum() - entropy.expand(q.units).sum()
