"""Which weights stay: those whose noise ratio is not over a threshold, given, or found for a share of the weights.

mask = log_alpha <= log_alpha_threshold
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from pyro_vd.common.guide_options import check_made
from pyro_vd.common.options import check_site_names
from pyro_vd.numpyro.arguments import check_data, check_params, check_program, kind_of, require_key
from pyro_vd.numpyro.checks import check_parameter_sites, latent_sites
from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.posteriors import WeightPosterior
from pyro_vd.sparsity.masks import DEFAULT_THRESHOLD, Sparsity, shares_of_sites, warn_of_miss

Posteriors = Mapping[str, WeightPosterior] | Callable


def keep_masks(
    guide: Posteriors,
    log_alpha_threshold: float = DEFAULT_THRESHOLD,
    sparsity: Sparsity = None,
    *,
    params: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """True where a weight stays, for every weight of a guide: ``log_alpha <= log_alpha_threshold``.

    Args:
        guide: a guide of :mod:`pyro_vd.guides.numpyro`, or the dict that its ``posteriors(params)`` or
            :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio; 3 is a dropout rate of 0.95. ``math.inf`` keeps all.
        sparsity: the share of the weights to prune, 0..1, in the place of a threshold: those with the largest
            ``log_alpha``. A number: of all weights of the guide together. A mapping from site or pattern (first match)
            to a share: of each site by itself; ``{"*": 0.9}`` takes 0.9 of every one. Weights that have one
            ``log_alpha`` (a unit, a layer) are pruned together, and no more than the share are pruned, rounded
            to a whole number of weights.
        params: the parameters of a guide, as ``svi.get_params`` returns them.

    Returns:
        ``{site: mask}`` in the order of the guide; each boolean, of the shape of the weight. :func:`keep_zeros` takes
        it, for fine-tuning.

    Raises:
        ValueError: a ``log_alpha`` that is NaN; a threshold that is NaN; a share outside of 0..1; threshold and share
            both; a mapping that names no site, or leaves one out; a guide without ``params``.
        TypeError: a threshold or a share that is not a number.

    Example:
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> q = DropoutNormal(jnp.array([1.0, 0.1, 0.01, 2.0]), log_sigma2=-3.0)
        >>> keep_masks({"w": q}, sparsity=0.5)
        {'w': Array([ True, False, False,  True], dtype=bool)}

    References:
        Molchanov et al. 2017, arXiv:1701.05369, section 5.

    See also:
        :func:`pyro_vd.numpyro.prune`, :func:`pyro_vd.numpyro.threshold_curve`.
    """
    posteriors = posteriors_of(guide, params)
    thresholds = find_thresholds(posteriors, log_alpha_threshold, sparsity)
    return {site: keep_mask(q, thresholds[site]) for site, q in posteriors.items()}


def keep_mask(posterior: WeightPosterior, log_alpha_threshold: Any = DEFAULT_THRESHOLD) -> Array:
    """True where a weight stays: ``log_alpha <= log_alpha_threshold``, in the shape of the weight."""
    return jnp.broadcast_to(posterior.log_alpha <= log_alpha_threshold, posterior.loc.shape)


def find_thresholds(
    posteriors: Mapping[str, WeightPosterior], log_alpha_threshold: float, sparsity: Sparsity
) -> dict[str, Any]:
    """The threshold of every site, all arguments checked; see :func:`keep_masks`."""
    log_alphas = {site: jnp.broadcast_to(q.log_alpha, q.loc.shape) for site, q in posteriors.items()}
    for site, log_alpha in log_alphas.items():
        if isinstance(log_alpha, jax.core.Tracer):  # type: ignore  # inside jit values are not known
            continue
        if count := int(jnp.isnan(log_alpha).sum()):
            raise ValueError(
                f"site {site!r}: expected a log_alpha for every weight, got {count} NaN of {log_alpha.size}; the "
                "training of this guide has failed: look at its loss, and lower the learning rate"
            )
    shares = shares_of_sites(list(log_alphas), log_alpha_threshold, sparsity)
    if shares is None:
        return dict.fromkeys(log_alphas, float(log_alpha_threshold))
    if isinstance(shares, dict):
        return {site: _threshold_for(shares[site], [log_alphas[site]], f"site {site!r}") for site in log_alphas}
    return dict.fromkeys(log_alphas, _threshold_for(shares, list(log_alphas.values()), "all sites"))


def _threshold_for(share: float, log_alphas: list[Array], where: str) -> Any:
    """The largest ``log_alpha`` that stays when at most ``share`` of the weights, rounded to a number of them, go."""
    values = jnp.sort(jnp.concatenate([log_alpha.ravel() for log_alpha in log_alphas]))
    kept = values.size - round(share * values.size)
    threshold = values[kept - 1] if kept else jnp.asarray(-math.inf, values.dtype)
    if not isinstance(values, jax.core.Tracer):  # type: ignore
        warn_of_miss(where, share, float((values > threshold).mean()))
    return threshold


def weight_posteriors(
    rng_key: Array, params: Mapping[str, Any], guide: Callable, *args: Any, **kwargs: Any
) -> dict[str, WeightPosterior]:
    """The distribution of every random weight that a guide samples, from one run of it.

    For guides written by hand; those of :mod:`pyro_vd.guides.numpyro` have ``guide.posteriors(params)``.

    Args:
        rng_key: a random key, for the sites of the guide that are not weights.
        params: parameters of the guide, as ``svi.get_params`` returns them.
        guide: any NumPyro guide.
        *args, **kwargs: its arguments.

    Returns:
        ``{site: posterior}`` in the order of the guide, without ``to_event``.

    Raises:
        TypeError: ``guide`` is no function, or ``params`` no dict of arrays.
        ValueError: no random key; a parameter of the guide is not in ``params``.

    Example:
        >>> import jax, numpyro, pyro_vd.numpyro as vd
        >>> def guide():
        ...     numpyro.sample("w", vd.DropoutNormal(jnp.ones((1, 2)), log_sigma2=-2.0).to_event(2))
        >>> weight_posteriors(jax.random.key(0), {}, guide)["w"].log_alpha.tolist()
        [[-2.0, -2.0]]

    See also:
        :func:`pyro_vd.numpyro.posterior_mean`, :func:`pyro_vd.numpyro.sparsity_report`,
        :func:`pyro_vd.numpyro.weight_bits`.
    """
    owner = "weight_posteriors"
    params = check_params(owner, params)
    check_program(owner, "guide", guide)
    check_data(owner, args, kwargs)
    seeded = handlers.seed(guide, require_key(owner, rng_key))
    with handlers.block():
        trace = handlers.trace(handlers.substitute(seeded, data=dict(params))).get_trace(*args, **kwargs)
    check_parameter_sites(owner, params, trace)
    found = {name: base_distribution(site["fn"]) for name, site in latent_sites(trace)}
    return {name: fn for name, fn in found.items() if isinstance(fn, WeightPosterior)}


def posteriors_of(guide: Posteriors, params: Mapping[str, Any] | None) -> Mapping[str, WeightPosterior]:
    """The distribution of every weight: of a guide, of the parts of a mixed one, or as given."""
    if isinstance(guide, Mapping):
        check_site_names("guide", guide)
        for site, posterior in guide.items():
            if not isinstance(posterior, WeightPosterior):
                raise TypeError(
                    f"site {site!r}: expected the posterior of a weight, got {kind_of(posterior)}; write "
                    "guide.posteriors(params), or weight_posteriors(rng_key, params, guide, *args)"
                )
        return guide
    check_made(guide)
    if not hasattr(guide, "posteriors"):
        raise TypeError(
            f"expected a guide of pyro_vd.guides.numpyro or a dict of posteriors, got {type(guide).__name__}; write "
            "weight_posteriors(rng_key, params, guide, *args) for a guide written by hand"
        )
    if params is None:
        raise ValueError(
            f"params: expected the parameters of {type(guide).__name__}, got none; write "
            "params=svi.get_params(svi_state)"
        )
    return guide.posteriors(params)  # type: ignore[attr-defined]
