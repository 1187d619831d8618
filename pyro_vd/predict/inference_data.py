"""to_arviz: predictions as arviz reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vd.common.inference_data import as_numpy, check_groups, check_sites, data_tree
from pyro_vd.common.options import shown
from pyro_vd.predict.distribution import Predictive


@torch.no_grad()
def to_arviz(
    draws: Mapping[str, Tensor | Predictive],
    *,
    observed: Mapping[str, Tensor] | None = None,
    posterior: Mapping[str, Tensor] | None = None,
    group: str = "posterior_predictive",
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """Predictions as the DataTree of arviz, for posterior predictive checks, LOO and plots.

    The draws of a guide are independent: they are one chain, and ``arviz_stats.loo(tree, reff=1.0)`` needs no
    posterior. The tree is xarray's, made by arviz-base; arviz 0.x takes it by ``arviz.InferenceData.from_datatree``.

    Args:
        draws: what :func:`posterior_predictive` returns, ``{site: tensor}``, draws first; or what
            :func:`predictive_distribution` returns, ``{site: Predictive}``, one value of which is drawn for each draw.
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
        TypeError: something else than a dict of tensors and predictions.

    Example:
        >>> tree = to_arviz({"y": torch.randn(50, 3)}, observed={"y": torch.zeros(3)}, dims={"y": ["city"]})
        >>> dict(tree["posterior_predictive"]["y"].sizes), dict(tree["observed_data"]["y"].sizes)
        ({'chain': 1, 'draw': 50, 'city': 3}, {'city': 3})

    References:
        Kumar et al. 2019, doi:10.21105/joss.01143; Vehtari, Gelman, Gabry 2017, arXiv:1507.04544, for LOO.

    See also:
        :func:`pyro_vd.predictive_distribution`, :class:`pyro_vd.Predictive`.
    """
    found = check_sites("draws", draws, "tensor or Predictive")
    seen = {} if observed is None else check_sites("observed", observed, "tensor")
    hidden = {} if posterior is None else check_sites("posterior", posterior, "tensor")
    check_groups(found, seen, group)
    likelihoods = {site: one for site, one in found.items() if isinstance(one, Predictive)}
    values = {site: one.draws.sample() if site in likelihoods else one for site, one in found.items()}
    judged = [site for site in seen if site in likelihoods and group == "posterior_predictive"]
    logs = {site: likelihoods[site].log_likelihood(seen[site]) for site in judged}
    return data_tree(_numpy("draws", values), _numpy("", logs), _numpy("observed", seen), _numpy("posterior", hidden),
                     group, dims, coords)  # fmt: skip


def _numpy(name: str, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    for site, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name}: expected a tensor for site {site!r}, got {shown(tensor)}; write torch.tensor(...)"
            )
    floats = {site: t.detach().cpu() for site, t in tensors.items()}
    return {site: as_numpy(t.float() if t.dtype == torch.bfloat16 else t) for site, t in floats.items()}
