"""Sparsity of a trained guide: which weights stay, the report, and the pruned net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from pyro_vd.numpyro.checks import latent_sites, require_key
from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.module import BayesianModule
from pyro_vd.numpyro.posteriors import WeightPosterior
from pyro_vd.sparsity import SparsityReport, SparsityRow

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
    kept = {site: keep_mask(q, log_alpha_threshold) for site, q in _posteriors(guide, params).items()}
    rows = tuple(SparsityRow(site, tuple(m.shape), m.size, int(m.sum())) for site, m in kept.items())
    return SparsityReport(rows, log_alpha_threshold)


def keep_mask(posterior: WeightPosterior, log_alpha_threshold: float = 3.0) -> Array:
    """True where a weight stays: ``log_alpha <= log_alpha_threshold``, in the shape of the weight."""
    return jnp.broadcast_to(posterior.log_alpha <= log_alpha_threshold, posterior.loc.shape)


def prune(
    bnn: BayesianModule, guide: Posteriors, log_alpha_threshold: float = 3.0, *, params: Mapping[str, Any]
) -> Any:
    """A plain net with posterior means for weights, zero where ``log_alpha > log_alpha_threshold``.

    Args:
        bnn: the module of the model.
        guide: a guide of :mod:`pyro_vd.guides.numpyro`, or the dict that its ``posteriors(params)`` or
            :func:`weight_posteriors` returns.
        log_alpha_threshold: see :func:`sparsity_report`; ``math.inf`` gives the mean network.
        params: the parameters, as ``svi.get_params`` returns them; for a net with a state together with
            ``svi_state.mutable_state``.

    Returns:
        A net of the library of the one in ``bnn``: no NumPyro, deterministic parameters and state as trained. Of
        linen a module bound to its variables, of a stateful equinox net the pair of module and state.

    Raises:
        ValueError: the guide has no posterior for a weight of ``bnn``; a parameter or the state is not in ``params``.
    """
    posteriors = _posteriors(guide, params)
    values = {}
    for name in bnn.adapted.parameters:
        site = bnn.site(name)
        if name not in bnn.weight_names:
            values[name] = _given(params, site)
        elif site in posteriors:
            values[name] = posteriors[site].mean * keep_mask(posteriors[site], log_alpha_threshold)
        else:
            raise ValueError(
                f"prune: expected a guide with a weight at site {site!r}, got one with {list(posteriors)}; "
                "pass the guide that was trained with this module"
            )
    state = bnn.adapted.state
    return bnn.adapted.rebuild(values, _given(params, bnn.site("state"))["values"] if jax.tree.leaves(state) else state)


def _given(params: Mapping[str, Any], site: str) -> Any:
    if site not in params:
        raise ValueError(
            f"params: expected a value for {site!r}, got {sorted(params)}; write svi.get_params(svi_state), and for a "
            "net with a state {**svi.get_params(svi_state), **svi_state.mutable_state}"
        )
    return params[site]


def _posteriors(guide: Posteriors, params: Mapping[str, Any] | None) -> Mapping[str, WeightPosterior]:
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
