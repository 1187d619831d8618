"""AutoLowRank: Gaussian weights with a diagonal plus low-rank covariance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_vd.common.guide_options import checked_options
from pyro_vd.common.options import check_rank
from pyro_vd.guides.numpyro.base import Params, WeightGuide
from pyro_vd.numpyro.posteriors import LowRankNormal


class AutoLowRank(WeightGuide):
    """Gaussian weights of each layer with covariance ``diag(exp(log_sigma2)) + sum_r factor[r] factor[r]^T``.

    Args:
        model: a NumPyro model.
        rank: number of factors, from 1 to the number of weights of the smallest layer.
        init_log_sigma2: where the log-variance of the diagonal starts; the factors start at random with as much
            variance in all.
        kl: the formula of its marginals' KL to the log-uniform prior.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Raises:
        ValueError: a rank < 1 or above the number of weights of a layer.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> guide = AutoLowRank(vd.BayesianModule(net, numpyro.distributions.Normal(0.0, 1.0)), rank=2)
        >>> numpyro.handlers.seed(guide, rng_seed=0)(jnp.ones((1, 3)))["net.weight"].shape
        (2, 3)

    References:
        Ong, Nott, Smith 2018, arXiv:1701.03208.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoMeanField`, :class:`pyro_vd.numpyro.LowRankNormal`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        rank: int = 1,
        init_log_sigma2: float = -10.0,
        kl: str = "sigmoid",
        **options: Any,
    ):
        if rank < 1:
            check_rank("AutoLowRank", rank, 1)
        super().__init__(model, **options)
        self.rank = rank
        self.init_log_sigma2 = float(init_log_sigma2)
        self.kl = kl

    def posterior(self, params: Params, site: str) -> LowRankNormal:
        parameters = (self._read(params, quantity, site) for quantity in ("locs", "log_sigma2s", "factors"))
        return LowRankNormal(*parameters, kl=self.kl)

    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        check_rank(f"site {site!r}: AutoLowRank", self.rank, value.size)
        scale = math.exp(0.5 * self.init_log_sigma2) / math.sqrt(self.rank)
        noise = jax.random.normal(self._init_keys[site], (self.rank, *value.shape), value.dtype)
        self._store("locs", site, value)
        self._store("log_sigma2s", site, jnp.full_like(value, self.init_log_sigma2))
        self._store("factors", site, scale * noise)
