"""Sparsity of a trained guide: which weights stay, and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from pyro_vd.common.reports import SparsityReport, SparsityRow
from pyro_vd.numpyro.checks import latent_sites, require_key
from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.posteriors import WeightPosterior

Posteriors = Mapping[str, WeightPosterior] | Callable


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
    """
    seeded = handlers.seed(guide, require_key("weight_posteriors", rng_key))
    with handlers.block():
        trace = handlers.trace(handlers.substitute(seeded, data=dict(params))).get_trace(*args, **kwargs)
    found = {name: base_distribution(site["fn"]) for name, site in latent_sites(trace)}
    return {name: fn for name, fn in found.items() if isinstance(fn, WeightPosterior)}


def sparsity_report(
    guide: Posteriors, log_alpha_threshold: float = 3.0, *, params: Mapping[str, Any] | None = None
) -> SparsityReport:
    """How many weights stay when those with ``log_alpha > log_alpha_threshold`` are pruned.

    Args:
        guide: a guide of :mod:`pyro_vd.guides.numpyro`, or the dict that its ``posteriors(params)`` or
            :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio; 3 is a dropout rate of 0.95. The threshold is a
            choice: look at the error of the pruned net over several.
        params: the parameters of a guide, as ``svi.get_params`` returns them.

    Raises:
        ValueError: a guide without ``params``.

    Example:
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> q = DropoutNormal(jnp.array([1.0, 0.01]), log_sigma2=-3.0)
        >>> print(sparsity_report({"w": q}))
        site            shape    weights       kept  sparsity  compression
        w                   2          2          1    50.00%         2.0x
        total                          2          1    50.00%         2.0x

    References:
        Molchanov et al. 2017, arXiv:1701.05369, section 5.
    """
    kept = {site: keep_mask(q, log_alpha_threshold) for site, q in posteriors_of(guide, params).items()}
    rows = tuple(SparsityRow(site, tuple(m.shape), m.size, int(m.sum())) for site, m in kept.items())
    return SparsityReport(rows, log_alpha_threshold)


def keep_mask(posterior: WeightPosterior, log_alpha_threshold: float = 3.0) -> Array:
    """True where a weight stays: ``log_alpha <= log_alpha_threshold``, in the shape of the weight."""
    return jnp.broadcast_to(posterior.log_alpha <= log_alpha_threshold, posterior.loc.shape)


def posteriors_of(guide: Posteriors, params: Mapping[str, Any] | None) -> Mapping[str, WeightPosterior]:
    """The distribution of every weight: of a guide, of the parts of a mixed one, or as given."""
    if isinstance(guide, Mapping):
        return guide
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
