"""AutoVariationalDropout: Kingma's variational dropout with learned rates, types A and B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from pyro_vd.common.guide_options import checked_options
from pyro_vd.guides.numpyro.base import Params, WeightGuide
from pyro_vd.guides.numpyro.parameters import projected
from pyro_vd.numpyro.posteriors import CorrelatedDropoutNormal, DropoutNormal, WeightPosterior


class AutoVariationalDropout(WeightGuide):
    """Multiplicative Gaussian noise with a learned rate, alpha <= 1: Kingma's variational dropout.

    Type A: independent noise on every weight, ``N(loc, alpha * loc**2)``. Type B (``correlated=True``):
    one noise for each input unit, ``W = s * loc``, ``s_i ~ N(1, alpha_i)``. ``log_alpha <= 0`` is kept by
    projection: the parameter is read as 0 where a step took it above, and its gradient is left as it is; with
    :meth:`projection` in the optimizer the parameter itself is set back to 0. Type A with
    ``TraceVD_ELBO(kl_weight=1 / 3)`` is the paper's A2.

    Args:
        model: a NumPyro model.
        granularity: one alpha per "weight", per "unit" (type A: output unit, type B: input unit) or per
            "layer"; "weight" for type A and "unit" for type B if not given.
        correlated: type B.
        init_log_alpha: where log_alpha starts, <= 0.
        kl: a method of :func:`pyro_vd.numpyro.kl.kl_log_uniform`; "cubic" is the paper's.
        unit_dim: for type B, where the units lie, in the order (output, input, *spatial) whatever the layout of the
            net.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Raises:
        ValueError: unknown granularity; "weight" for type B; init_log_alpha > 0; for type B, a site without input
            units.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> guide = AutoVariationalDropout(bnn, granularity="unit")
        >>> svi = numpyro.infer.SVI(bnn, guide, numpyro.optim.Adam(1e-3), vd.TraceVD_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(0), jnp.ones((1, 3))))
        >>> guide.log_alpha(params, "net.weight").shape
        (2, 1)

    References:
        Kingma, Salimans, Welling 2015, arXiv:1506.02557, sections 3 and 4.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoSparseVD`, :class:`pyro_vd.guides.numpyro.AutoGaussianDropout`,
        :class:`pyro_vd.numpyro.DropoutNormal`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        granularity: str | None = None,
        *,
        correlated: bool = False,
        init_log_alpha: float = -3.0,
        kl: str = "cubic",
        unit_dim: int = 1,
        **options: Any,
    ):
        allowed = ("unit", "layer") if correlated else ("weight", "unit", "layer")
        granularity = allowed[0] if granularity is None else granularity
        if granularity not in allowed:
            raise ValueError(
                f"granularity: expected one of {', '.join(map(repr, allowed))} with correlated={correlated}, got "
                f"{granularity!r}"
            )
        if not init_log_alpha <= 0:
            raise ValueError(f"init_log_alpha: expected a number <= 0 (alpha <= 1), got {init_log_alpha!r}")
        super().__init__(model, **options)
        self.granularity = granularity
        self.correlated = correlated
        self.init_log_alpha = float(init_log_alpha)
        self.kl = kl
        self.unit_dim = unit_dim if correlated else None

    def posterior(self, params: Params, site: str) -> WeightPosterior:
        loc, log_alpha = self._read(params, "locs", site), self._projected(params, site)
        if self.correlated:
            return CorrelatedDropoutNormal(loc, log_alpha, unit_dim=self._units(site, self.unit_dim), kl=self.kl)
        return DropoutNormal(loc, log_alpha, kl=self.kl)

    def log_alpha(self, params: Params, site: str) -> Array:
        return self._projected(params, self._known(site))

    def project(self, params: Params) -> dict[str, Any]:
        rates = {self._parameter("log_alphas", site) for site in self.weight_sites}
        return {name: jnp.minimum(value, 0.0) if name in rates else value for name, value in params.items()}

    def _projected(self, params: Params, site: str) -> Array:
        log_alpha = self._read(params, "log_alphas", site)
        return projected(log_alpha, jnp.minimum(log_alpha, 0.0))

    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        self._store("locs", site, value)
        shape = list(value.shape) if self.granularity == "weight" else [1] * value.ndim
        if self.granularity == "unit":
            dim = self._units(site, self.unit_dim if self.correlated else 0)
            shape[dim] = value.shape[dim]
        self._store("log_alphas", site, jnp.full(shape, self.init_log_alpha, value.dtype))
