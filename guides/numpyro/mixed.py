"""mixed_guide: several families in one guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide

from pyro_vd.common.guide_options import check_parts
from pyro_vd.common.predictions import check_quantiles
from pyro_vd.common.shapes import check_sizes
from pyro_vd.guides.numpyro.base import Params, WeightGuide
from pyro_vd.numpyro.arguments import check_params, check_program, kind_of, require_key
from pyro_vd.numpyro.posteriors import WeightPosterior


class MixedGuide(AutoGuide):
    """What :func:`mixed_guide` returns: several guides as one."""

    def __init__(self, model: Callable, guides: tuple[Any, ...]):
        super().__init__(model)
        check_program("mixed_guide", "model", model)
        wrong = [guide for guide in guides if not isinstance(guide, AutoGuide)]
        if wrong or not guides:
            raise TypeError(
                "mixed_guide: expected automatic guides after the model, got "
                f"{kind_of(wrong[0]) if wrong else 'none'}; write "
                "mixed_guide(model, AutoSparseVD(model, where=...), AutoMeanField(model, where=...))"
            )
        self.guides = guides

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Sample every site of every part; returns a dict from site name to value."""
        result: dict[str, Any] = {}
        for guide in self.guides:
            part: Any = guide if isinstance(guide, WeightGuide) else handlers.infer_config(guide, config_fn=_estimated)
            try:
                drawn = part(*args, **kwargs)
            except AssertionError as error:  # of NumPyro's trace, as the second guide samples the site
                if "unique names" not in str(error):
                    raise
                raise ValueError(
                    f"mixed_guide: expected no two guides on the same site, got one twice: {error}; give each guide a "
                    "where= of its own, one of NumPyro numpyro.handlers.block(model, hide=[...])"
                ) from error
            twice = sorted(result.keys() & drawn.keys())
            if twice:
                raise ValueError(
                    f"mixed_guide: expected no two guides on the same site, got {twice} twice; give each guide a "
                    "where= of its own"
                )
            result |= drawn
        return result

    def posteriors(self, params: Params) -> dict[str, WeightPosterior]:
        """The distribution of every weight site of every part."""
        check_params("mixed_guide", params)
        parts = [guide.posteriors(params) for guide in self.guides if hasattr(guide, "posteriors")]
        return {site: posterior for part in parts for site, posterior in part.items()}

    def median(self, params: Params) -> dict[str, Array]:
        """The medians of every part."""
        return {site: value for guide in self.guides for site, value in guide.median(params).items()}

    def quantiles(self, params: Params, quantiles: Any) -> dict[str, Array]:
        """The quantiles of every part, see :meth:`pyro_vd.guides.numpyro.base.WeightGuide.quantiles`."""
        probabilities = check_quantiles(quantiles)
        return {s: value for guide in self.guides for s, value in guide.quantiles(params, probabilities).items()}

    def sample_posterior(
        self, rng_key: Array, params: Params, *args: Any, sample_shape: tuple[int, ...] = (), **kwargs: Any
    ) -> dict[str, Any]:
        """Draws of every site of every part."""
        sample_shape = check_sizes("mixed_guide.sample_posterior", "sample_shape", sample_shape, "(10,)")
        keys = jax.random.split(require_key("mixed_guide.sample_posterior", rng_key), len(self.guides))
        parts = [
            guide.sample_posterior(key, params, *args, sample_shape=sample_shape, **kwargs)
            for guide, key in zip(self.guides, keys, strict=True)
        ]
        return {site: value for part in parts for site, value in part.items()}


def _estimated(site: Any) -> dict[str, Any]:
    """For TraceVD_ELBO: the KL of a site of NumPyro's own guides is estimated where it has no closed form."""
    return {"estimate_kl": True}


def mixed_guide(model: Callable, *guides: AutoGuide) -> MixedGuide:
    """A guide of several families, each on the sites that its ``where`` names.

    NumPyro's ``AutoGuideList`` would draw the weights from their prior to see the model, which the improper
    log-uniform prior does not allow.

    Args:
        model: the NumPyro model.
        *guides: guides with ``where=``, no two on the same site, or any other automatic guide of a part.

    Raises:
        TypeError: no guide, or one that is not automatic.
        ValueError: two guides on one site, when it is called.

    Example:
        >>> import equinox as eqx, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> from pyro_vd.guides.numpyro import AutoSparseVD, AutoVariationalDropout
        >>> net = eqx.nn.MLP(3, 2, width_size=4, depth=1, key=jax.random.key(0))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> first = AutoVariationalDropout(bnn, correlated=True, where="net.layers.0.weight")
        >>> guide = mixed_guide(bnn, first, AutoSparseVD(bnn, where="net.layers.1.weight"))
        >>> sorted(numpyro.handlers.seed(guide, rng_seed=0)(jnp.ones((1, 3))))
        ['net.layers.0.weight', 'net.layers.1.weight']

    See also:
        :class:`pyro_vd.guides.numpyro.AutoSparseVD`, :class:`pyro_vd.guides.numpyro.AutoMeanField`.
    """
    check_parts(model, guides, AutoGuide)
    return MixedGuide(model, guides)
