"""AutoGroupSparse: whole input units or filters pruned, by a normal-Jeffreys prior on groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vd.common.guide_options import checked_options
from pyro_vd.common.options import LogUniformKL
from pyro_vd.guides.base import WeightGuide
from pyro_vd.posteriors import GroupNormal


class AutoGroupSparse(WeightGuide):
    """Gaussian weights with a random scale per unit, ``W = z * v``; units whose z is noise are pruned whole.

    Args:
        model: a Pyro model with the log-uniform prior on its weights.
        unit_dim: 1 prunes input units (of Linear and ConvNd), 0 output units: rows, filters.
        init_log_sigma2: where the log-variances of z and v start.
        kl: a method of :func:`pyro_vd.kl.kl_log_uniform`, for z.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Raises:
        ValueError: a site without such units.

    Example:
        >>> import pyro_vd as vd
        >>> guide = AutoGroupSparse(vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform()))
        >>> _ = guide(torch.ones(1, 3))
        >>> guide.log_alpha("net.weight").shape
        torch.Size([1, 3])

    References:
        Louizos, Ullrich, Welling 2017, arXiv:1705.08665, section 3.1.

    See also:
        :class:`pyro_vd.guides.AutoSparseVD`, :class:`pyro_vd.GroupNormal`, :func:`pyro_vd.shrink`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        *,
        unit_dim: int = 1,
        init_log_sigma2: float = -10.0,
        kl: LogUniformKL = "sigmoid",
        **options: Any,
    ):
        self.unit_dim = unit_dim
        self.init_log_sigma2 = float(init_log_sigma2)
        self.kl: LogUniformKL = kl
        super().__init__(model, **options)

    def _free_posterior(self, site: str) -> GroupNormal:
        parameters = (
            self._read(quantity, site) for quantity in ("locs", "log_sigma2s", "unit_locs", "unit_log_sigma2s")
        )
        return GroupNormal(*parameters, unit_dim=self.unit_dim, kl=self.kl)

    def _init_weight(self, site: str, value: Tensor) -> None:
        units = value.shape[self.unit_dim]
        self._store("locs", site, value)
        self._store("log_sigma2s", site, torch.full_like(value, self.init_log_sigma2))
        self._store("unit_locs", site, value.new_ones(units))
        self._store("unit_log_sigma2s", site, value.new_full((units,), self.init_log_sigma2))
