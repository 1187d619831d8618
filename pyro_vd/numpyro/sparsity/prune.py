"""The pruned net: posterior means for weights, zero where the noise is too large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from pyro_vd.numpyro.module import BayesianModule
from pyro_vd.numpyro.sparsity.report import Posteriors, keep_mask, posteriors_of


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
    posteriors = posteriors_of(guide, params)
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
