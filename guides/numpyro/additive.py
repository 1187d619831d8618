"""Guides of additive Gaussian weights ``N(loc, exp(log_sigma2))``: sparse VD, mean field and ARD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from pyro_vd.common.guide_options import checked_options
from pyro_vd.guides.numpyro.base import Params, WeightGuide
from pyro_vd.guides.numpyro.parameters import projected
from pyro_vd.numpyro.kl import log_alpha_additive
from pyro_vd.numpyro.posteriors import DropoutNormal


class AdditiveGuide(WeightGuide):
    """Abstract: ``loc`` and ``log_sigma2`` for every weight; one alpha per weight, derived, without a cap."""

    kl = "sigmoid"

    @checked_options
    def __init__(self, model: Callable, init_log_sigma2: float = -10.0, **options: Any):
        super().__init__(model, **options)
        self.init_log_sigma2 = float(init_log_sigma2)

    def posterior(self, params: Params, site: str) -> DropoutNormal:
        loc, log_sigma2 = self._read(params, "locs", site), self._read(params, "log_sigma2s", site)
        return DropoutNormal(loc, log_sigma2=log_sigma2, kl=self.kl)

    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        self._store("locs", site, value)
        self._store("log_sigma2s", site, jnp.full_like(value, self.init_log_sigma2))


class AutoSparseVD(AdditiveGuide):
    """Sparse variational dropout: ``N(loc, exp(log_sigma2))`` under a log-uniform prior.

    Args:
        model: a NumPyro model.
        init_log_sigma2: where the log-variance starts.
        kl: a method of :func:`pyro_vd.numpyro.kl.kl_log_uniform`.
        zero_above: read the mean of a weight as 0 whenever its log_alpha is above this threshold, with the gradient
            left as it is; with :meth:`projection` in the optimizer the parameter itself is set to 0, and such a
            weight comes back only where a single step takes it below. It sparsifies faster than the bound alone,
            whose last nats are slow. None leaves all means alone. Looked at when a step is compiled.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> guide = AutoSparseVD(bnn)
        >>> svi = numpyro.infer.SVI(bnn, guide, numpyro.optim.Adam(1e-3), vd.TraceVD_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(0), jnp.ones((1, 3))))
        >>> numpyro.handlers.seed(guide, rng_seed=0)(jnp.ones((1, 3)))["net.weight"].shape
        (2, 3)
        >>> guide.log_alpha(params, "net.weight").shape
        (2, 3)

    References:
        Molchanov, Ashukha, Vetrov 2017, arXiv:1701.05369, section 4.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoVariationalDropout`, :class:`pyro_vd.guides.numpyro.AutoARD`,
        :func:`pyro_vd.numpyro.sparsity_report`, :func:`pyro_vd.numpyro.prune`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        init_log_sigma2: float = -10.0,
        kl: str = "sigmoid",
        *,
        zero_above: float | None = None,
        **options: Any,
    ):
        super().__init__(model, init_log_sigma2, **options)
        self.kl = kl
        self.zero_above = zero_above

    def posterior(self, params: Params, site: str) -> DropoutNormal:
        loc, log_sigma2 = self._read(params, "locs", site), self._read(params, "log_sigma2s", site)
        return DropoutNormal(projected(loc, self._zeroed(loc, log_sigma2)), log_sigma2=log_sigma2, kl=self.kl)

    def project(self, params: Params) -> dict[str, Any]:
        means = {
            self._parameter("locs", site): self._zeroed(
                self._read(params, "locs", site), self._read(params, "log_sigma2s", site)
            )
            for site in self.weight_sites
        }
        return {name: means.get(name, value) for name, value in params.items()}

    def _zeroed(self, loc: Array, log_sigma2: Array) -> Array:
        if self.zero_above is None:
            return loc
        return jnp.where(log_alpha_additive(loc, log_sigma2) > self.zero_above, 0.0, loc)


class AutoMeanField(AdditiveGuide):
    """Mean-field Gaussian weights, for a proper prior such as ``Normal(0, 1)``; the KL is in closed form.

    Args:
        model: a NumPyro model.
        init_log_sigma2: where the log-variance starts.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> guide = AutoMeanField(vd.BayesianModule(net, numpyro.distributions.Normal(0.0, 1.0)))
        >>> numpyro.handlers.seed(guide, rng_seed=0)(jnp.ones((1, 3)))["net.weight"].shape
        (2, 3)

    References:
        Graves 2011; Blundell et al. 2015, arXiv:1505.05424; LRT form in Kingma et al. 2015, equation 6.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoLowRank`, :class:`pyro_vd.guides.numpyro.AutoSparseVD`.
    """


class AutoARD(AdditiveGuide):
    """Automatic relevance determination: the variance of each weight's zero-mean Gaussian prior is fitted.

    ``KL = 0.5 * log1p(1 / alpha)`` at the best prior variance ``loc**2 + sigma2``. The model's prior is written
    ``ImproperLogUniform()``: it has no parameter of its own that could contradict.

    Args:
        model: a NumPyro model with the log-uniform prior on its weights.
        init_log_sigma2: where the log-variance starts.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.numpyro.base.WeightGuide`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> guide = AutoARD(vd.BayesianModule(net, vd.ImproperLogUniform()))
        >>> numpyro.handlers.seed(guide, rng_seed=0)(jnp.ones((1, 3)))["net.weight"].shape
        (2, 3)

    References:
        Kharitonov, Molchanov, Vetrov 2018, arXiv:1811.00596.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoSparseVD`, :class:`pyro_vd.guides.numpyro.AutoGroupSparse`,
        :func:`pyro_vd.numpyro.kl.kl_ard`.
    """

    kl = "ard"
