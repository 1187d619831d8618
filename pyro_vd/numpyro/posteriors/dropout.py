"""Dropout of units as distributions of the weight: Gaussian (type B), binary and concrete, with their KL rules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.scipy.special import logit, xlogy
from numpyro.distributions import Independent, Normal, constraints

from pyro_vd.common.options import LOG_UNIFORM_METHODS, LogUniformKL, check_choice, check_dropout_rate, check_number
from pyro_vd.numpyro.kl import kl_log_uniform
from pyro_vd.numpyro.posteriors.base import given_value, prior_of_weight, real_arguments, register_kl
from pyro_vd.numpyro.posteriors.units import UnitPosterior, unit_values
from pyro_vd.numpyro.priors import ImproperLogUniform

_LEARNED_RATE = (
    "BernoulliDropout: expected a dropout_rate that is given, got a gradient in it; it chooses masks and so has no "
    "reparameterised one; write jax.lax.stop_gradient(dropout_rate), or learn it with ConcreteDropout"
)
_LEARNED_SCALE = (
    "expected a Normal prior with a scale that is given, got a gradient in it, which the published KL of dropout "
    "leaves a term out of; write jax.lax.stop_gradient(scale), or learn it with DropoutNormal (AutoMeanField)"
)


class CorrelatedDropoutNormal(UnitPosterior):
    """One Gaussian noise per unit, ``W = s * loc``, ``s_i ~ N(1, alpha_i)`` (Kingma's type B).

    The KL to the log-uniform prior is that of the s_i: one term per unit. Under "local" every row of
    the input has noise of its own, as dropout on activations.

    Args:
        loc: mean of the weight, two dimensions or more.
        log_alpha: natural log of alpha; one number, shape ``(units,)``, or a shape that broadcasts with
            ``loc`` with size 1 off the units.
        unit_dim: where the units lie; see :class:`UnitPosterior`.
        kl: a method of :func:`pyro_vd.numpyro.kl.kl_log_uniform`.

    Raises:
        ValueError: log_alpha of another shape; no such dimension; unknown kl.

    Example:
        >>> q = CorrelatedDropoutNormal(jnp.ones((2, 3)), jnp.zeros(3))
        >>> (q.sample(jax.random.key(0)).std(0) == 0).all()
        Array(True, dtype=bool)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 3.2 and appendix B.

    See also:
        :class:`pyro_vd.numpyro.DropoutNormal`, :class:`pyro_vd.guides.numpyro.AutoVariationalDropout`.
    """

    arg_constraints: Any = real_arguments("loc", "log_alpha")
    reparametrized_params = ["loc", "log_alpha"]
    arguments = ("loc", "log_alpha")
    options = ("unit_dim", "kl")
    pytree_data_fields = ("_log_alpha",)
    pytree_aux_fields = ("kl",)

    def __init__(
        self,
        loc: Array,
        log_alpha: Array | float,
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
    def log_alpha(self) -> Array:
        """Natural log of alpha, shaped to broadcast with the weight."""
        return self.along_units(self._log_alpha)

    @property
    def variance(self) -> Array:
        return jnp.exp(self.log_alpha) * jnp.square(self.loc)

    def draw_units(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        noise = jax.random.normal(key, (*sample_shape, self.units), self.loc.dtype)
        return 1 + jnp.exp(0.5 * self._log_alpha) * noise


class BernoulliDropout(UnitPosterior):
    """Binary dropout as a weight, ``W = loc * z / (1 - dropout_rate)``, ``z_i ~ Bernoulli(1 - dropout_rate)``.

    Its KL to a Normal prior is the first-order form of Gal and Ghahramani; its KL to the log-uniform prior does not
    depend on ``loc`` (that is what this prior is for), and its constant is dropped: 0.

    Args:
        loc: mean of the weight.
        dropout_rate: probability of dropping a unit, in [0, 1): a number or shape ``(units,)``. It cannot be learned:
            it chooses masks, and what it does to them has no reparameterised gradient.
        unit_dim: where the units lie; see :class:`UnitPosterior`.

    Raises:
        ValueError: a rate outside [0, 1) (that of an array is checked where NumPyro validates, or with
            ``validate_args=True``, and where it is not traced); a gradient in the rate.

    Example:
        >>> q = BernoulliDropout(jnp.ones((2, 3)), 0.5)
        >>> q.variance[0]
        Array([1., 1., 1.], dtype=float32)

    References:
        Srivastava et al. 2014; Gal and Ghahramani 2016, arXiv:1506.02142, section 3.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoBernoulliDropout`, :class:`pyro_vd.numpyro.ConcreteDropout`.
    """

    arg_constraints: Any = {"loc": constraints.real, "dropout_rate": constraints.unit_interval}
    reparametrized_params = ["loc"]
    arguments = ("loc", "dropout_rate")
    options = ("unit_dim",)
    pytree_data_fields = ("_dropout_rate",)

    def __init__(
        self, loc: Array, dropout_rate: Array | float, *, unit_dim: int = 1, validate_args: bool | None = None
    ):
        super().__init__(loc, unit_dim)
        if getattr(dropout_rate, "ndim", 0) == 0 and not isinstance(dropout_rate, (list, tuple, Tracer)):
            check_dropout_rate(type(self).__name__, dropout_rate)
        self._dropout_rate = unit_values(self, "dropout_rate", dropout_rate)
        self._validate(validate_args)
        if self._validate_args and not isinstance(self._dropout_rate, Tracer):
            rates = np.asarray(self._dropout_rate)
            for rate in rates[~((rates >= 0) & (rates < 1))][:1]:
                check_dropout_rate(type(self).__name__, rate)

    @property
    def dropout_rate(self) -> Array:
        """Probability of dropping, shaped to broadcast with the weight."""
        return self.along_units(self._dropout_rate)

    @property
    def log_alpha(self) -> Array:
        """``log(p / (1 - p))``, the noise ratio of the Gaussian with the same variance."""
        return logit(self.dropout_rate)

    @property
    def variance(self) -> Array:
        rate = self.dropout_rate
        return rate / (1 - rate) * jnp.square(self.loc)

    def draw_units(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        uniform = jax.random.uniform(key, (*sample_shape, self.units), self.loc.dtype)
        rate = given_value(self._dropout_rate, _LEARNED_RATE)
        return (uniform >= rate).astype(self.loc.dtype) / (1 - rate)


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
        >>> ConcreteDropout(jnp.ones((2, 3)), jnp.zeros(1)).dropout_rate.squeeze()
        Array(0.5, dtype=float32)

    References:
        Gal, Hron, Kendall 2017, arXiv:1705.07832, equations 3 and 4.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoConcreteDropout`, :class:`pyro_vd.numpyro.BernoulliDropout`.
    """

    arg_constraints: Any = real_arguments("loc", "logit_dropout_rate")
    reparametrized_params = ["loc", "logit_dropout_rate"]
    arguments = ("loc", "logit_dropout_rate")
    options = ("temperature", "unit_dim")
    pytree_data_fields = ("_logit_dropout_rate",)
    pytree_aux_fields = ("temperature",)

    def __init__(
        self,
        loc: Array,
        logit_dropout_rate: Array | float,
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
    def logit_dropout_rate(self) -> Array:
        """``log(p / (1 - p))``, shaped to broadcast with the weight."""
        return self.along_units(self._logit_dropout_rate)

    @property
    def log_alpha(self) -> Array:
        """``logit_dropout_rate``: the noise ratio of the Gaussian that has the variance of the binary limit."""
        return self.logit_dropout_rate

    @property
    def variance(self) -> Array:
        """Of the binary limit, ``p / (1 - p) * loc**2``."""
        return jnp.exp(self.log_alpha) * jnp.square(self.loc)

    def draw_units(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        uniform = jax.random.uniform(key, (*sample_shape, self.units), self.loc.dtype)
        tiny = jnp.finfo(uniform.dtype).eps
        kept = jax.nn.sigmoid((logit(jnp.clip(uniform, tiny, 1 - tiny)) - self._logit_dropout_rate) / self.temperature)
        return kept / jax.nn.sigmoid(-self._logit_dropout_rate)


@register_kl(CorrelatedDropoutNormal, Independent)
def _kl_correlated(q: CorrelatedDropoutNormal, p: Independent) -> Array:
    prior_of_weight(q, p, ImproperLogUniform)
    return jnp.broadcast_to(kl_log_uniform(q._log_alpha, q.kl), q.units).sum()


@register_kl(BernoulliDropout, Independent)
def _kl_bernoulli(q: BernoulliDropout, p: Independent) -> Array:
    prior = prior_of_weight(q, p, ImproperLogUniform, Normal)
    if isinstance(prior, Normal):
        return _kl_binary(q, q._dropout_rate, prior)
    return jnp.zeros((), q.loc.dtype)


@register_kl(ConcreteDropout, Independent)
def _kl_concrete(q: ConcreteDropout, p: Independent) -> Array:
    return _kl_binary(q, jax.nn.sigmoid(q._logit_dropout_rate), prior_of_weight(q, p, Normal))


def _kl_binary(q: UnitPosterior, rate: Array, p: Any) -> Array:
    """``sum ((1 - p) * (loc / (1 - p) - m)**2 + p * m**2) / (2 * variance) - sum over units of H(p)``

    Gal and Ghahramani 2016, appendix, and Gal, Hron, Kendall 2017, equation 4, for weights
    ``loc * z / (1 - p)`` and a prior N(m, variance). The formula leaves out a constant that depends on the variance of
    the prior, so that it cannot be learned by it.
    """
    scale = given_value(jnp.asarray(p.scale), f"{type(q).__name__}: {_LEARNED_SCALE}")
    drop = q.along_units(rate)
    kept = q.loc / (1 - drop)
    square = (1 - drop) * jnp.square(kept - p.loc) + drop * jnp.square(p.loc)
    entropy = -(xlogy(rate, rate) + xlogy(1 - rate, 1 - rate))
    return (square / (2 * jnp.square(scale))).sum() - jnp.broadcast_to(entropy, q.units).sum()
