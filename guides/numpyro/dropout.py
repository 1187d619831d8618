"""Guides of dropout with a rate given, or learned by relaxation: binary, concrete, Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from pyro_vd.common.guide_options import checked_options
from pyro_vd.common.options import check_dropout_rate
from pyro_vd.guides.numpyro.base import Params, WeightGuide
from pyro_vd.numpyro.posteriors import (
    BernoulliDropout,
    ConcreteDropout,
    CorrelatedDropoutNormal,
    DropoutNormal,
    WeightPosterior,
)


class AutoBernoulliDropout(WeightGuide):
    """Binary dropout of input units with a given rate, as a guide.

    With :class:`pyro_vd.numpyro.ImproperLogUniform` the KL is 0 and the loss that of ordinary dropout training; with
    a Normal prior the KL is the weight decay of Gal and Ghahramani.

    Args:
        model: a NumPyro model.
        dropout_rate: probability of dropping an input unit of a layer, in [0, 1).
        unit_dim: dimension of the weight where its input units lie; 1 for Linear and ConvNd.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Raises:
        ValueError: a rate outside [0, 1); a site without input units.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> guide = AutoBernoulliDropout(bnn, 0.2)
        >>> svi = numpyro.infer.SVI(bnn, guide, numpyro.optim.Adam(1e-3), vd.TraceVD_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(0), jnp.ones((1, 3))))
        >>> round(float(guide.dropout_rate(params, "net.weight").squeeze()), 4)
        0.2

    References:
        Srivastava et al. 2014; Gal and Ghahramani 2016, arXiv:1506.02142.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoConcreteDropout`, :class:`pyro_vd.guides.numpyro.AutoGaussianDropout`,
        :class:`pyro_vd.numpyro.BernoulliDropout`.
    """

    never_learnable = {"dropout_rates": "has no reparameterised gradient; use AutoConcreteDropout to learn a rate"}

    @checked_options
    def __init__(
        self,
        model: Callable,
        dropout_rate: float = 0.5,
        *,
        unit_dim: int = 1,
        **options: Any,
    ):
        super().__init__(model, **options)
        self.init_dropout_rate = check_dropout_rate("AutoBernoulliDropout", dropout_rate)
        self.unit_dim = unit_dim

    def posterior(self, params: Params, site: str) -> BernoulliDropout:
        loc, rate = self._read(params, "locs", site), self._read(params, "dropout_rates", site)
        return BernoulliDropout(loc, rate, unit_dim=self._units(site, self.unit_dim))

    def dropout_rate(self, params: Params, site: str) -> Array:
        return self.posterior(params, self._known(site)).dropout_rate

    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        self._store("locs", site, value)
        self._store("dropout_rates", site, jnp.full((1,), self.init_dropout_rate, value.dtype), learnable=False)


class AutoConcreteDropout(WeightGuide):
    """Binary dropout of input units with a learned rate per layer, by the concrete relaxation.

    Needs a Normal prior: to the log-uniform prior its KL is not defined.

    Args:
        model: a NumPyro model with Normal priors on its weights.
        init_dropout_rate: where the rate starts, in (0, 1).
        temperature: of the relaxation.
        unit_dim: where the units lie, in the order (output, input, *spatial) whatever the layout of the net.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Raises:
        ValueError: a rate outside (0, 1); a site without input units.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, numpyro.distributions.Normal(0.0, 1.0))
        >>> guide = AutoConcreteDropout(bnn)
        >>> svi = numpyro.infer.SVI(bnn, guide, numpyro.optim.Adam(1e-3), vd.TraceVD_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(0), jnp.ones((1, 3))))
        >>> round(float(guide.dropout_rate(params, "net.weight").squeeze()), 4)
        0.1

    References:
        Gal, Hron, Kendall 2017, arXiv:1705.07832.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoBernoulliDropout`, :class:`pyro_vd.numpyro.ConcreteDropout`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        init_dropout_rate: float = 0.1,
        *,
        temperature: float = 0.1,
        unit_dim: int = 1,
        **options: Any,
    ):
        super().__init__(model, **options)
        rate = check_dropout_rate("AutoConcreteDropout", init_dropout_rate)
        if rate == 0:
            raise ValueError(
                "AutoConcreteDropout: expected init_dropout_rate in (0, 1), got 0, from which a rate cannot be learned"
            )
        self.init_logit = math.log(rate / (1 - rate))
        self.temperature = temperature
        self.unit_dim = unit_dim

    def posterior(self, params: Params, site: str) -> ConcreteDropout:
        loc, logit = self._read(params, "locs", site), self._read(params, "logit_dropout_rates", site)
        return ConcreteDropout(loc, logit, temperature=self.temperature, unit_dim=self._units(site, self.unit_dim))

    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        self._store("locs", site, value)
        self._store("logit_dropout_rates", site, jnp.full((1,), self.init_logit, value.dtype))


class AutoGaussianDropout(WeightGuide):
    """Gaussian dropout with a given rate: multiplicative noise N(1, alpha), ``alpha = p / (1 - p)``.

    Type A draws it for every weight, type B (``correlated=True``) for every input unit. Its KL to the
    log-uniform prior is a constant.

    Args:
        model: a NumPyro model.
        dropout_rate: p of the binary dropout with the same variance, in [0, 1).
        correlated: type B.
        unit_dim: for type B, where the units lie, in the order (output, input, *spatial) whatever the layout of the
            net.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Raises:
        ValueError: a rate outside [0, 1); for type B, a site without input units.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> guide = AutoGaussianDropout(bnn, 0.5)
        >>> svi = numpyro.infer.SVI(bnn, guide, numpyro.optim.Adam(1e-3), vd.TraceVD_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(0), jnp.ones((1, 3))))
        >>> float(guide.log_alpha(params, "net.weight").squeeze())
        0.0

    References:
        Wang and Manning 2013; Srivastava et al. 2014, section 10; Kingma et al. 2015, sections 3.1 and 3.2.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoVariationalDropout`, :class:`pyro_vd.guides.numpyro.AutoBernoulliDropout`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        dropout_rate: float = 0.5,
        *,
        correlated: bool = False,
        unit_dim: int = 1,
        **options: Any,
    ):
        super().__init__(model, **options)
        rate = check_dropout_rate("AutoGaussianDropout", dropout_rate)
        # A rate of 0 is noise too small to change a float, with a KL that is finite.
        self.init_log_alpha = math.log(rate / (1 - rate)) if rate > 0 else -80.0
        self.correlated = correlated
        self.unit_dim = unit_dim if correlated else None

    def posterior(self, params: Params, site: str) -> WeightPosterior:
        loc, log_alpha = self._read(params, "locs", site), self._read(params, "log_alphas", site)
        if self.correlated:
            return CorrelatedDropoutNormal(loc, log_alpha, unit_dim=self._units(site, self.unit_dim))
        return DropoutNormal(loc, log_alpha)

    def log_alpha(self, params: Params, site: str) -> Array:
        return self._read(params, "log_alphas", self._known(site))

    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        self._store("locs", site, value)
        self._store("log_alphas", site, jnp.full((1,) * value.ndim, self.init_log_alpha, value.dtype), learnable=False)
