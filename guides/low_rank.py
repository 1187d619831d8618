"""AutoLowRank: Gaussian weights with a diagonal plus low-rank covariance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vd.common.guide_options import checked_options
from pyro_vd.common.options import LogUniformKL, check_rank
from pyro_vd.guides.base import WeightGuide
from pyro_vd.posteriors import LowRankNormal


class AutoLowRank(WeightGuide):
    """Gaussian weights of each layer with covariance ``diag(exp(log_sigma2)) + sum_r factor[r] factor[r]^T``.

    Args:
        model: a Pyro model.
        rank: number of factors, from 1 to the number of weights of the smallest layer.
        init_log_sigma2: where the log-variance of the diagonal starts; the factors start at random with as much
            variance in all.
        kl: the formula of its marginals' KL to the log-uniform prior.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Raises:
        ValueError: a rank < 1 or above the number of weights of a layer.

    Example:
        >>> import torch, pyro_vd as vd, pyro.distributions as dist
        >>> guide = AutoLowRank(vd.BayesianModule(torch.nn.Linear(3, 2), dist.Normal(0.0, 1.0)), rank=2)
        >>> guide(torch.ones(1, 3))["net.weight"].shape
        torch.Size([2, 3])

    References:
        Ong, Nott, Smith 2018, arXiv:1701.03208.

    See also:
        :class:`pyro_vd.guides.AutoMeanField`, :class:`pyro_vd.LowRankNormal`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        rank: int = 1,
        init_log_sigma2: float = -10.0,
        kl: LogUniformKL = "sigmoid",
        **options: Any,
    ):
        if rank < 1:
            check_rank("AutoLowRank", rank, 1)
        self.rank = rank
        self.init_log_sigma2 = float(init_log_sigma2)
        self.kl: LogUniformKL = kl
        super().__init__(model, **options)

    def _free_posterior(self, site: str) -> LowRankNormal:
        return LowRankNormal(
            self._read("locs", site), self._read("log_sigma2s", site), self._read("factors", site), kl=self.kl
        )

    def _init_weight(self, site: str, value: Tensor) -> None:
        check_rank(f"site {site!r}: AutoLowRank", self.rank, value.numel())
        scale = math.exp(0.5 * self.init_log_sigma2) / math.sqrt(self.rank)
        self._store("locs", site, value)
        self._store("log_sigma2s", site, torch.full_like(value, self.init_log_sigma2))
        self._store("factors", site, scale * torch.randn((self.rank, *value.shape)).to(value))
