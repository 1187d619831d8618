"""Which latent sites of a model a guide covers, and which it leaves to the model.

A guide may be called first without labels, and a label that is not observed looks like any latent site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.ops.provenance import eval_provenance

from pyro_vd.common.guide_options import moving_support
from pyro_vd.numpyro.arguments import check_precision
from pyro_vd.numpyro.checks import describe, latent_sites
from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.priors import ImproperLogUniform

Covers = Callable[[str], bool]


def covered_sites(
    program: Callable, trace: dict[str, Any], where: Covers | None, args: tuple, kwargs: dict
) -> dict[str, Any]:
    """The latent sites of a trace that a guide may cover, by name.

    Not a site of a minibatch: inside a :func:`pyro_vd.numpyro.data_plate`, or a plate that subsamples. Where the model
    observes nothing in this call, not a site that depends on others and that none depends on: it may be a label.

    Args:
        program: the model as it was run for the trace.
        trace: what it did.
        where: the sites that the user named; of those only the ones of a minibatch are left out.
        args, kwargs: what it was called with.
    """
    sizes = plate_sizes(trace)
    latent = {name: site for name, site in latent_sites(trace) if is_weight(site) or not _in_minibatch(site, sizes)}
    observes = any(site["type"] == "sample" and site["is_observed"] for site in trace.values())
    others = [name for name, site in latent.items() if not is_weight(site)]
    if observes or where is not None or not others:
        return latent
    on = _dependence(program, latent, latent, lambda fn: fn, args, kwargs)
    used = {name for depends in on.values() for name in depends}
    return {name: site for name, site in latent.items() if is_weight(site) or not on[name] or name in used}


def plate_sizes(trace: dict[str, Any]) -> dict[str, int]:
    """The full size of every plate of a trace."""
    return {name: site["args"][0] for name, site in trace.items() if site["type"] == "plate"}


def is_weight(message: Any) -> bool:
    """Whether a site is a random weight without having been named: of a BayesianModule, or of the improper prior."""
    return "net_parameter" in message["infer"] or isinstance(base_distribution(message["fn"]), ImproperLogUniform)


def unit_dim(site: str, message: Any, dim: int) -> int:
    """The dimension of a weight that is ``dim`` in the order (output, input, *spatial).

    Raises:
        ValueError: the layers of a linen net are not known before its first call.
    """
    dims = message["infer"].get("unit_dims", (0, 1))
    if dims is None:
        raise ValueError(
            f"site {site!r}: expected a linen net that was called once, whose layers say where its units lie, got "
            "a new one; call svi.init(rng_key, *args) with the arguments of the model first"
        )
    return dims[dim] if dim in (0, 1) else dim


def check_weights(guide: str, unit_dim: int | None, weights: Any, latent: list[str], by_itself: bool) -> None:
    """Raise where there is no weight, or one that the family cannot cover; ``by_itself``: without ``where``."""
    if not weights:
        reason = "is a weight (of a BayesianModule, or under ImproperLogUniform)" if by_itself else "matches where"
        raise ValueError(
            f"{guide}: expected a latent site that {reason}, got the sites {latent}; name the weights with where="
        )
    for site, message in weights.items():
        _check_site(guide, unit_dim, site, message)
        check_precision(f"site {site!r}", "the value that it starts from", message["value"])


def _check_site(guide: str, unit_dim: int | None, site: str, message: Any) -> None:
    """Raise where a family of guides, whose units lie in ``unit_dim`` if it has them, cannot cover a site."""
    support = message["fn"].support
    while hasattr(support, "base_constraint"):  # of to_event
        support = support.base_constraint
    if support is not constraints.real:
        raise ValueError(
            f"site {site!r}: expected a weight on the real line for {guide}, got a prior "
            f"{type(base_distribution(message['fn'])).__name__} with support {support}; leave it out of where= "
            "and cover it with numpyro.infer.autoguide.AutoNormal"
        )
    shape = tuple(message["fn"].event_shape)
    if unit_dim is not None and len(shape) < 2:
        raise ValueError(
            f"site {site!r}: expected a weight of two dimensions or more for {guide}, whose noise is "
            f"shared by the units of a layer, got shape {shape}; cover it with AutoSparseVD, AutoMeanField or "
            "AutoVariationalDropout, whose noise is per weight, or leave it out of where="
        )
    if unit_dim is not None and not -len(shape) <= unit_dim < len(shape):
        raise ValueError(
            f"site {site!r}: expected a weight with dimension {unit_dim} for its units, got shape {shape}; "
            f"give {guide} another unit_dim"
        )


def _in_minibatch(site: Any, sizes: dict[str, int]) -> bool:
    frames = site["cond_indep_stack"]
    return bool(site["infer"].get("in_data_plate")) or any(sizes.get(f.name, f.size) != f.size for f in frames)


def check_supports(program: Callable, trace: dict[str, Any], sites: list[str], args: tuple, kwargs: dict) -> None:
    """Raise for a latent site whose support depends on other sites or on parameters.

    A guide maps the real line to the support that the site has when the guide first sees it.

    Args:
        program: the model as it was run for the trace.
        trace: what it did.
        sites: names of latent sites that are no weights.
        args, kwargs: what it was called with.
    """
    parameters = {name: site for name, site in trace.items() if site["type"] == "param"}
    # Numbers of Python depend on nothing, but for a parameter that starts at one.
    kinds = (Array,) if all(isinstance(site["value"], Array) for site in parameters.values()) else (Array, float, int)
    bounded = [n for n in sites if any(isinstance(leaf, kinds) for leaf in jax.tree.leaves(trace[n]["fn"].support))]
    if not bounded:
        return
    sources = dict(latent_sites(trace)) | parameters
    depends = _dependence(program, sources, bounded, lambda fn: fn.support, args, kwargs)
    for name in bounded:
        if depends[name]:
            raise ValueError(
                moving_support(name, describe(trace[name]["fn"]), ", ".join(map(repr, sorted(depends[name]))))
            )


def _dependence(
    program: Callable,
    sources: dict[str, Any],
    sites: Iterable[str],
    part: Callable[[Any], Any],
    args: tuple,
    kwargs: dict,
) -> dict[str, set[str]]:
    """For each of the ``sites``, the ``sources`` that a part of its distribution depends on."""

    def parts(**values: Any) -> dict[str, list[Array]]:
        trace = handlers.trace(handlers.substitute(program, data=values)).get_trace(*args, **kwargs)
        return {name: jax.tree.leaves(part(trace[name]["fn"])) for name in sites}

    arrays = {name: jnp.asarray(site["value"]) for name, site in sources.items()}
    values = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    with handlers.block():
        found = eval_provenance(parts, **values)
    return {name: set().union(*leaves) - {name} for name, leaves in found.items()}
