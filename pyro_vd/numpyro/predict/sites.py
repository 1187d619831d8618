"""Which sites of a model a prediction returns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_vd.common.options import check_known, check_names, shown

RETURNED = "_RETURN"  # what the model returns, as pyro.infer.Predictive calls it


def names_of(return_sites: Any) -> tuple[str, ...]:
    """The names as a tuple; a bare name is one of them.

    Raises:
        TypeError: not names.
    """
    return (return_sites,) if isinstance(return_sites, str) else check_names("return_sites", return_sites)


def chosen_sites(trace: Any, returned: Any, wanted: Collection[str], guided: Collection[str]) -> dict[str, Array]:
    """The values of the sites that are wanted; without names those that neither the guide nor the data has given.

    Args:
        trace: a run of the model.
        returned: what it returned.
        wanted: names of sites.
        guided: the sites of the guide.

    Raises:
        ValueError: a name that the model does not have; nothing to predict.
        TypeError: the model returns no array, and it is wanted.
    """
    sites = {name: site for name, site in trace.items() if site["type"] in ("sample", "deterministic")}
    check_known("return_sites", wanted, [*sites, RETURNED])
    if wanted:
        if RETURNED in wanted and not isinstance(returned, jax.Array):
            raise TypeError(
                f"return_sites: expected a model that returns an array for {RETURNED!r}, got "
                f"{shown(returned)}; return the array from the model, or name its sites"
            )
        return {name: returned if name == RETURNED else sites[name]["value"] for name in wanted}
    new = {name: site for name, site in sites.items() if name not in guided}
    observed = [name for name, site in new.items() if site.get("is_observed")]
    if observed and not any(site["type"] == "sample" and name not in observed for name, site in new.items()):
        raise ValueError(
            f"posterior_predictive: expected a model with a site to predict, got one that observes {observed}; call it "
            "without the labels (leave y out), or name return_sites="
        )
    return {name: site["value"] for name, site in new.items() if name not in observed}


def same_sites(pieces: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the sites of every piece of the examples.

    Raises:
        ValueError: a site that only some pieces have.
    """
    names = list(dict.fromkeys(name for piece in pieces for name in piece))
    for name in names:
        number = sum(name in piece for piece in pieces)
        if number < len(pieces):
            raise ValueError(
                f"site {name!r}: expected the same sites in every piece of the examples, got it in {number} of "
                f"{len(pieces)} pieces; leave batch_size out"
            )
    return names


def check_same(name: str, pieces: Sequence[Sequence[Array]]) -> None:
    """Raise ValueError unless a site without an axis of examples has the same arrays in every piece of them."""
    first, *others = pieces
    for other in others:
        same = [a.shape == b.shape and bool(jnp.array_equal(a, b)) for a, b in zip(first, other, strict=True)]
        if not all(same):
            raise ValueError(
                f"site {name!r}: expected a value for every example, along its first axis, or one that is the same in "
                f"every piece of the examples, got shapes {[tuple(a.shape) for a in first]} and other values in other "
                "pieces; leave batch_size out"
            )
