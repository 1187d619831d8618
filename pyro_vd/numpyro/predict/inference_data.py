"""to_arviz: predictions as arviz reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from pyro_vd.common.examples import is_array
from pyro_vd.common.inference_data import as_numpy, check_groups, check_sites, data_tree
from pyro_vd.common.options import shown
from pyro_vd.numpyro.arguments import require_key
from pyro_vd.numpyro.predict.distribution import Predictive


def to_arviz(
    draws: Mapping[str, Array | Predictive],
    *,
    rng_key: Array | None = None,
    observed: Mapping[str, Array] | None = None,
    posterior: Mapping[str, Array] | None = None,
    group: str = "posterior_predictive",
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """Predictions as the DataTree of arviz, for posterior predictive checks, LOO and plots.

    The draws of a guide are independent: they are one chain, and ``arviz_stats.loo(tree, reff=1.0)`` needs no
    posterior. The tree is xarray's, made by arviz-base; arviz 0.x takes it by ``arviz.InferenceData.from_datatree``.

    Args:
        draws: what :func:`posterior_predictive` returns, ``{site: array}``, draws first; or what
            :func:`predictive_distribution` returns, ``{site: Predictive}``, one value of which is drawn for each draw.
        rng_key: for the values of a ``Predictive``.
        observed: ``{site: values}`` of the inputs that were predicted, for the group ``observed_data``. For a
            ``Predictive`` of the posterior ``log_likelihood`` has the log likelihood of every draw and example,
            nats; examples that its mask hides count 0 there.
        posterior: ``{site: draws}`` of the guide, as ``posterior_predictive(return_sites=...)`` gives them.
        group: of ``draws``: "posterior_predictive"; "predictions", for new inputs; or "prior_predictive".
        dims: ``{site: names}`` of the axes after chain and draw; without, ``site_dim_0`` and so on.
        coords: ``{dimension: labels}`` along it.

    Returns:
        ``xarray.DataTree`` with a node for each group.

    Raises:
        ImportError: arviz-base is not installed (the extra "arviz").
        ValueError: a site, group or dimension that is not there; shapes or numbers of draws that do not agree;
            observed values outside the support of every draw.
        TypeError: something else than a dict of arrays and predictions; no ``rng_key`` for a ``Predictive``.

    Example:
        >>> tree = to_arviz({"y": np.zeros((50, 3))}, observed={"y": np.zeros(3)}, dims={"y": ["city"]})
        >>> dict(tree["posterior_predictive"]["y"].sizes), dict(tree["observed_data"]["y"].sizes)
        ({'chain': 1, 'draw': 50, 'city': 3}, {'city': 3})

    References:
        Kumar et al. 2019, doi:10.21105/joss.01143; Vehtari, Gelman, Gabry 2017, arXiv:1507.04544, for LOO.

    See also:
        :func:`pyro_vd.numpyro.predictive_distribution`, :class:`pyro_vd.numpyro.Predictive`.
    """
    found = check_sites("draws", draws, "array or Predictive")
    seen = {} if observed is None else check_sites("observed", observed, "array")
    hidden = {} if posterior is None else check_sites("posterior", posterior, "array")
    check_groups(found, seen, group)
    likelihoods = {site: one for site, one in found.items() if isinstance(one, Predictive)}
    values = dict(found)
    for i, (site, one) in enumerate(likelihoods.items()):
        values[site] = one.draws.sample(jax.random.fold_in(require_key("to_arviz", rng_key), i))
    judged = [site for site in seen if site in likelihoods and group == "posterior_predictive"]
    logs = {site: likelihoods[site].log_likelihood(seen[site]) for site in judged}
    return data_tree(_numpy("draws", values), _numpy("", logs), _numpy("observed", seen), _numpy("posterior", hidden),
                     group, dims, coords)  # fmt: skip


def _numpy(name: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    for site, array in arrays.items():
        if not is_array(array):
            raise TypeError(f"{name}: expected an array for site {site!r}, got {shown(array)}; write jnp.array(...)")
    return {site: as_numpy(array) for site, array in arrays.items()}
