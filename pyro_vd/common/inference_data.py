"""Draws as a DataTree of arviz: groups, chains and dimensions; nothing here needs an array library but NumPy.

The tree is that of arviz-base, and not the InferenceData of arviz 0.x: arviz-base is where arviz is developed now, it
is installed on Python 3.11 to 3.13, and a DataTree is what arviz 1 works on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vd.common.extras import imported
from pyro_vd.common.options import check_choice, check_known, shown

GROUPS = ("posterior_predictive", "predictions", "prior_predictive")


def check_sites(name: str, sites: Any, what: str) -> dict[str, Any]:
    """The mapping as a dict, or TypeError unless it is one from names; ValueError where it is empty."""
    if not isinstance(sites, Mapping) or not all(isinstance(site, str) for site in sites):
        raise TypeError(
            f'to_arviz: expected {name} to be a dict {{site: {what}}}, got {shown(sites)}; write {{"y": ...}}'
        )
    if not sites:
        raise ValueError(f"to_arviz: expected {name} to have a site, got an empty dict; leave it out, or add a site")
    return dict(sites)


def check_groups(draws: Mapping[str, Any], observed: Mapping[str, Any], group: str) -> None:
    """Raise ValueError for an unknown group, and for observed data of no site, or beside predictions."""
    check_choice("group", group, GROUPS)
    check_known("observed", observed, draws)
    if observed and group == "predictions":
        raise ValueError(
            "observed: expected none with group 'predictions', which are of inputs without data, got "
            f"{list(observed)}; write group='posterior_predictive', or leave them out"
        )


def data_tree(
    draws: dict[str, np.ndarray],
    log_likelihood: dict[str, np.ndarray],
    observed: dict[str, np.ndarray],
    posterior: dict[str, np.ndarray],
    group: str,
    dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Any] | None,
) -> Any:
    """The tree, all draws in one chain.

    Args:
        draws, log_likelihood, posterior: draws first, then the shape of the site.
        observed: the shape of the site.
        group: of ``draws``.
        dims, coords: as in :func:`pyro_vd.to_arviz`.
    """
    drawn = [*draws.items(), *posterior.items()]
    numbers = {site: len(values) for site, values in drawn if values.ndim}
    scalars = [site for site, values in drawn if not values.ndim]
    if scalars or len({len(values) for _, values in drawn}) > 1:
        raise ValueError(
            f"to_arviz: expected as many draws of every site, along the first axis, got {numbers}"
            f"{f', and no axis in {scalars}' if scalars else ''}; draw them in one call"
        )
    for site, values in observed.items():
        if values.shape != draws[site].shape[1:]:
            raise ValueError(
                f"observed: expected values of site {site!r} of shape {draws[site].shape[1:]}, got {values.shape}; "
                "give the data of the inputs that were predicted"
            )
    sizes = _dimensions(drawn, dims or {})
    _check_coords(coords or {}, sizes)
    named = {site: list(names) for site, names in (dims or {}).items()}
    groups = {group: draws, "log_likelihood": log_likelihood, "posterior": posterior}
    data = {name: {site: v[None] for site, v in values.items()} for name, values in groups.items() if values}
    data |= {"observed_data": observed} if observed else {}
    attrs = {"/": {"inference_library": "pyro_vd"}}
    base = imported("arviz_base", "arviz", "to_arviz")
    return base.from_dict(data, dims=named, coords=coords, pred_dims=named, pred_coords=coords, attrs=attrs)


def as_numpy(values: Any) -> np.ndarray:
    """Values of a backend on the CPU; types that NumPy does not have (bfloat16) as float32."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _dimensions(drawn: list[tuple[str, np.ndarray]], dims: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The size of every dimension, those without a name as arviz calls them."""
    check_known("dims", dims, [site for site, _ in drawn])
    sizes: dict[str, int] = {}
    for site, values in drawn:
        names = list(dims.get(site, [f"{site}_dim_{i}" for i in range(values.ndim - 1)]))
        if isinstance(dims.get(site), str) or len(names) != values.ndim - 1 or {"chain", "draw"} & set(names):
            raise ValueError(
                f"dims: expected {values.ndim - 1} names for site {site!r}, whose shape is {values.shape[1:]} beside "
                f"chain and draw, got {dims[site]!r}; write a list with a name for each axis"
            )
        for name, size in zip(names, values.shape[1:], strict=True):
            if sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"dims: expected {name!r} to have one size, got {sizes[name]} and {size} (site {site!r}); give "
                    "them two names"
                )
    return sizes


def _check_coords(coords: Mapping[str, Any], sizes: dict[str, int]) -> None:
    check_known("coords", coords, sizes, "dimensions")
    for name, values in coords.items():
        if len(values) != sizes[name]:
            raise ValueError(f"coords: expected {sizes[name]} values along {name!r}, got {len(values)}")
