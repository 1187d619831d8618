"""Guides of dropout with a rate given, or learned by relaxation: binary, concrete, Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_vd.common.guide_options import checked_options
from pyro_vd.common.options import check_dropout_rate
from pyro_vd.guides.base import WeightGuide
from pyro_vd.posteriors import (
    BernoulliDropout,
    ConcreteDropout,
    CorrelatedDropoutNormal,
    DropoutNormal,
    WeightPosterior,
)
from pyro_vd.posteriors.fixed import with_fixed_ratio


class AutoBernoulliDropout(WeightGuide):
    """Binary dropout of input units with a given rate, as a guide.

    With :class:`pyro_vd.ImproperLogUniform` the KL is 0 and the loss that of ordinary dropout training; with a Normal
    prior the KL is the weight decay of Gal and Ghahramani.

    Args:
        model: a Pyro model.
        dropout_rate: probability of dropping an input unit of a layer, in [0, 1).
        unit_dim: dimension of the weight where its input units lie; 1 for Linear and ConvNd.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Raises:
        ValueError: a rate outside [0, 1); a site without input units.

    Example:
        >>> import torch, pyro_vd as vd
        >>> guide = AutoBernoulliDropout(vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform()), 0.2)
        >>> _ = guide(torch.ones(1, 3))
        >>> guide.dropout_rate("net.weight").squeeze()
        tensor(0.2000)

    References:
        Srivastava et al. 2014; Gal and Ghahramani 2016, arXiv:1506.02142.

    See also:
        :class:`pyro_vd.guides.AutoConcreteDropout`, :class:`pyro_vd.guides.AutoGaussianDropout`,
        :class:`pyro_vd.BernoulliDropout`.
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
        self.init_dropout_rate = check_dropout_rate("AutoBernoulliDropout", dropout_rate)
        self.unit_dim = unit_dim
        super().__init__(model, **options)

    def _free_posterior(self, site: str) -> BernoulliDropout:
        return BernoulliDropout(self._read("locs", site), self._read("dropout_rates", site), unit_dim=self.unit_dim)

    def dropout_rate(self, site: str) -> Tensor:
        return self._posterior(self._known(site)).dropout_rate

    def _init_weight(self, site: str, value: Tensor) -> None:
        self._store("locs", site, value)
        self._store("dropout_rates", site, value.new_full((1,), self.init_dropout_rate), learnable=False)


class AutoConcreteDropout(WeightGuide):
    """Binary dropout of input units with a learned rate per layer, by the concrete relaxation.

    Needs a Normal prior: to the log-uniform prior its KL is not defined.

    Args:
        model: a Pyro model with Normal priors on its weights.
        init_dropout_rate: where the rate starts, in (0, 1).
        temperature: of the relaxation.
        unit_dim: dimension of the weight where its input units lie.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Raises:
        ValueError: a rate outside (0, 1); a site without input units.

    Example:
        >>> import torch, pyro_vd as vd, pyro.distributions as dist
        >>> guide = AutoConcreteDropout(vd.BayesianModule(torch.nn.Linear(3, 2), dist.Normal(0.0, 1.0)))
        >>> _ = guide(torch.ones(1, 3))
        >>> guide.dropout_rate("net.weight").squeeze()
        tensor(0.1000, grad_fn=<SqueezeBackward0>)

    References:
        Gal, Hron, Kendall 2017, arXiv:1705.07832.

    See also:
        :class:`pyro_vd.guides.AutoBernoulliDropout`, :class:`pyro_vd.ConcreteDropout`.
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
        rate = check_dropout_rate("AutoConcreteDropout", init_dropout_rate)
        if rate == 0:
            raise ValueError(
                "AutoConcreteDropout: expected init_dropout_rate in (0, 1), got 0, from which a rate cannot be learned"
            )
        self.init_logit = math.log(rate / (1 - rate))
        self.temperature = temperature
        self.unit_dim = unit_dim
        super().__init__(model, **options)

    def _free_posterior(self, site: str) -> ConcreteDropout:
        logit = self._read("logit_dropout_rates", site)
        return ConcreteDropout(self._read("locs", site), logit, temperature=self.temperature, unit_dim=self.unit_dim)

    def _init_weight(self, site: str, value: Tensor) -> None:
        self._store("locs", site, value)
        self._store("logit_dropout_rates", site, value.new_full((1,), self.init_logit))


class AutoGaussianDropout(WeightGuide):
    """Gaussian dropout with a given rate: multiplicative noise N(1, alpha), ``alpha = p / (1 - p)``.

    Type A draws it for every weight, type B (``correlated=True``) for every input unit. Its KL to the
    log-uniform prior is a constant.

    Args:
        model: a Pyro model.
        dropout_rate: p of the binary dropout with the same variance, in [0, 1).
        correlated: type B.
        unit_dim: for type B, the dimension of the weight where its input units lie.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Raises:
        ValueError: a rate outside [0, 1); for type B, a site without input units.

    Example:
        >>> import torch, pyro_vd as vd
        >>> guide = AutoGaussianDropout(vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform()), 0.5)
        >>> _ = guide(torch.ones(1, 3))
        >>> guide.log_alpha("net.weight").squeeze()
        tensor(0.)

    References:
        Wang and Manning 2013; Srivastava et al. 2014, section 10; Kingma et al. 2015, sections 3.1 and 3.2.

    See also:
        :class:`pyro_vd.guides.AutoVariationalDropout`, :class:`pyro_vd.guides.AutoBernoulliDropout`.
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
        rate = check_dropout_rate("AutoGaussianDropout", dropout_rate)
        # A rate of 0 is noise too small to change a float, with a KL that is finite.
        self.init_log_alpha = math.log(rate / (1 - rate)) if rate > 0 else -80.0
        self.correlated = correlated
        self.unit_dim = unit_dim if correlated else None
        super().__init__(model, **options)

    def _free_posterior(self, site: str) -> WeightPosterior:
        loc, log_alpha = self._read("locs", site), self._read("log_alphas", site)
        if self.correlated:
            return CorrelatedDropoutNormal(loc, log_alpha, unit_dim=self.unit_dim)
        return DropoutNormal(loc, log_alpha)

    def log_alpha(self, site: str) -> Tensor:
        return with_fixed_ratio(self._read("log_alphas", self._known(site)), self._fixed(site))

    def _init_weight(self, site: str, value: Tensor) -> None:
        self._store("locs", site, value)
        self._store("log_alphas", site, value.new_full((1,) * value.dim(), self.init_log_alpha), learnable=False)
