"""Guides of additive Gaussian weights ``N(loc, exp(log_sigma2))``: sparse VD, mean field and ARD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vd.common.guide_options import checked_options
from pyro_vd.common.options import LogUniformKL, NormalKL
from pyro_vd.guides.base import WeightGuide
from pyro_vd.posteriors import DropoutNormal


class AdditiveGuide(WeightGuide):
    """Abstract: ``loc`` and ``log_sigma2`` for every weight; one alpha per weight, derived, without a cap."""

    kl: NormalKL = "sigmoid"

    @checked_options
    def __init__(self, model: Callable, init_log_sigma2: float = -10.0, **options: Any):
        self.init_log_sigma2 = float(init_log_sigma2)
        super().__init__(model, **options)

    def _free_posterior(self, site: str) -> DropoutNormal:
        return DropoutNormal(self._read("locs", site), log_sigma2=self._read("log_sigma2s", site), kl=self.kl)

    def _init_weight(self, site: str, value: Tensor) -> None:
        self._store("locs", site, value)
        self._store("log_sigma2s", site, torch.full_like(value, self.init_log_sigma2))


class AutoSparseVD(AdditiveGuide):
    """Sparse variational dropout: ``N(loc, exp(log_sigma2))`` under a log-uniform prior.

    Args:
        model: a Pyro model.
        init_log_sigma2: where the log-variance starts.
        kl: a method of :func:`pyro_vd.kl.kl_log_uniform`.
        zero_above: set the mean of a weight to 0 whenever its log_alpha is above this threshold, while training
            goes: such a weight comes back only where a single step takes it below. It sparsifies
            faster than the bound alone, whose last nats are slow. None leaves all means alone.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Example:
        >>> import pyro_vd as vd
        >>> guide = AutoSparseVD(vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform()))
        >>> guide(torch.ones(1, 3))["net.weight"].shape
        torch.Size([2, 3])
        >>> guide.log_alpha("net.weight").shape
        torch.Size([2, 3])

    References:
        Molchanov, Ashukha, Vetrov 2017, arXiv:1701.05369, section 4.

    See also:
        :class:`pyro_vd.guides.AutoVariationalDropout`, :class:`pyro_vd.guides.AutoARD`,
        :func:`pyro_vd.sparsity_report`, :func:`pyro_vd.prune`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        init_log_sigma2: float = -10.0,
        kl: LogUniformKL = "sigmoid",
        *,
        zero_above: float | None = None,
        **options: Any,
    ):
        self.kl = kl
        self.zero_above = zero_above
        super().__init__(model, init_log_sigma2, **options)

    def _free_posterior(self, site: str) -> DropoutNormal:
        posterior = super()._free_posterior(site)
        if self.zero_above is not None:
            # On .data, as a projection, which is not part of the graph.
            posterior.loc.data.masked_fill_(posterior.log_alpha.detach() > self.zero_above, 0.0)
        return posterior


class AutoMeanField(AdditiveGuide):
    """Mean-field Gaussian weights, for a proper prior such as ``Normal(0, 1)``; the KL is in closed form.

    Args:
        model: a Pyro model.
        init_log_sigma2: where the log-variance starts.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Example:
        >>> import pyro_vd as vd, pyro.distributions as dist
        >>> guide = AutoMeanField(vd.BayesianModule(torch.nn.Linear(3, 2), dist.Normal(0.0, 1.0)))
        >>> guide(torch.ones(1, 3))["net.weight"].shape
        torch.Size([2, 3])

    References:
        Graves 2011; Blundell et al. 2015, arXiv:1505.05424; LRT form in Kingma et al. 2015, equation 6.

    See also:
        :class:`pyro_vd.guides.AutoLowRank`, :class:`pyro_vd.guides.AutoSparseVD`.
    """


class AutoARD(AdditiveGuide):
    """Automatic relevance determination: the variance of each weight's zero-mean Gaussian prior is fitted.

    ``KL = 0.5 * log1p(1 / alpha)`` at the best prior variance ``loc**2 + sigma2``. The model's prior is written
    ``ImproperLogUniform()``: it has no parameter of its own that could contradict.

    Args:
        model: a Pyro model with the log-uniform prior on its weights.
        init_log_sigma2: where the log-variance starts.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Example:
        >>> import pyro_vd as vd
        >>> guide = AutoARD(vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform()))
        >>> guide(torch.ones(1, 3))["net.weight"].shape
        torch.Size([2, 3])

    References:
        Kharitonov, Molchanov, Vetrov 2018, arXiv:1811.00596.

    See also:
        :class:`pyro_vd.guides.AutoSparseVD`, :class:`pyro_vd.guides.AutoGroupSparse`, :func:`pyro_vd.kl.kl_ard`.
    """

    kl: NormalKL = "ard"
