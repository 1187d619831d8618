"""AutoGroupSparse: whole input units or filters pruned, by a normal-Jeffreys prior on groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from pyro_vd.common.guide_options import checked_options
from pyro_vd.guides.numpyro.base import Params, WeightGuide
from pyro_vd.numpyro.posteriors import GroupNormal


class AutoGroupSparse(WeightGuide):
    """Gaussian weights with a random scale per unit, ``W = z * v``; units whose z is noise are pruned whole.

    Args:
        model: a NumPyro model with the log-uniform prior on its weights.
        unit_dim: 1 prunes input units (of dense layers and convolutions), 0 output units, filters; in the order
            (output, input, *spatial) whatever the layout of the net.
        init_log_sigma2: where the log-variances of z and v start.
        kl: a method of :func:`pyro_vd.numpyro.kl.kl_log_uniform`, for z.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Raises:
        ValueError: a site without such units.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> guide = AutoGroupSparse(bnn)
        >>> svi = numpyro.infer.SVI(bnn, guide, numpyro.optim.Adam(1e-3), vd.TraceVD_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(0), jnp.ones((1, 3))))
        >>> guide.log_alpha(params, "net.weight").shape
        (1, 3)

    References:
        Louizos, Ullrich, Welling 2017, arXiv:1705.08665, section 3.1.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoSparseVD`, :class:`pyro_vd.numpyro.GroupNormal`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        *,
        unit_dim: int = 1,
        init_log_sigma2: float = -10.0,
        kl: str = "sigmoid",
        **options: Any,
    ):
        super().__init__(model, **options)
        self.unit_dim = unit_dim
        self.init_log_sigma2 = float(init_log_sigma2)
        self.kl = kl

    def posterior(self, params: Params, site: str) -> GroupNormal:
        parameters = (
            self._read(params, quantity, site) for quantity in ("locs", "log_sigma2s", "unit_locs", "unit_log_sigma2s")
        )
        return GroupNormal(*parameters, unit_dim=self._units(site, self.unit_dim), kl=self.kl)

    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        units = value.shape[self._units(site, self.unit_dim)]
        self._store("locs", site, value)
        self._store("log_sigma2s", site, jnp.full_like(value, self.init_log_sigma2))
        self._store("unit_locs", site, jnp.ones(units, value.dtype))
        self._store("unit_log_sigma2s", site, jnp.full((units,), self.init_log_sigma2, value.dtype))
