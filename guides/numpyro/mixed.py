"""mixed_guide: several families in one guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from numpyro.infer.autoguide import AutoGuide

from pyro_vd.common.guide_options import check_parts
from pyro_vd.guides.numpyro.base import Params
from pyro_vd.numpyro.posteriors import WeightPosterior


class MixedGuide(AutoGuide):
    """What :func:`mixed_guide` returns: several guides as one."""

    def __init__(self, model: Callable, guides: tuple[Any, ...]):
        super().__init__(model)
        self.guides = guides

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Sample every site of every part; returns a dict from site name to value."""
        return {site: value for guide in self.guides for site, value in guide(*args, **kwargs).items()}

    def posteriors(self, params: Params) -> dict[str, WeightPosterior]:
        """The distribution of every weight site of every part."""
        parts = [guide.posteriors(params) for guide in self.guides if hasattr(guide, "posteriors")]
        return {site: posterior for part in parts for site, posterior in part.items()}

    def median(self, params: Params) -> dict[str, Array]:
        """The medians of every part."""
        return {site: value for guide in self.guides for site, value in guide.median(params).items()}

    def sample_posterior(
        self, rng_key: Array, params: Params, *args: Any, sample_shape: tuple[int, ...] = (), **kwargs: Any
    ) -> dict[str, Any]:
        """Draws of every site of every part."""
        keys = jax.random.split(rng_key, len(self.guides))
        parts = [
            guide.sample_posterior(key, params, *args, sample_shape=sample_shape, **kwargs)
            for guide, key in zip(self.guides, keys, strict=True)
        ]
        return {site: value for part in parts for site, value in part.items()}


def mixed_guide(model: Callable, *guides: AutoGuide) -> MixedGuide:
    """A guide of several families, each on the sites that its ``where`` names.

    NumPyro's ``AutoGuideList`` would draw the weights from their prior to see the model, which the improper
    log-uniform prior does not allow.

    Args:
        model: the NumPyro model.
        *guides: guides with ``where=``, no two on the same site, or any other automatic guide of a part.

    Example:
        >>> import equinox as eqx, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> from pyro_vd.guides.numpyro import AutoSparseVD, AutoVariationalDropout
        >>> net = eqx.nn.MLP(3, 2, width_size=4, depth=1, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> first = AutoVariationalDropout(bnn, correlated=True, where="net.layers.0.weight")
        >>> guide = mixed_guide(bnn, first, AutoSparseVD(bnn, where="net.layers.1.weight"))
        >>> sorted(numpyro.handlers.seed(guide, rng_seed=0)(jnp.ones((1, 3))))
        ['net.layers.0.weight', 'net.layers.1.weight']
    """
    check_parts(guides)
    return MixedGuide(model, guides)
