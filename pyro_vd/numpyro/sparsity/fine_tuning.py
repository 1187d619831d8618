"""Fine-tuning of a pruned net with optax: zeros stay zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pyro_vd.common.options import check_site_names
from pyro_vd.numpyro.arguments import kind_of


def keep_zeros(masks: Mapping[str, Array]) -> optax.GradientTransformation:
    """An optax transformation that takes no step where a mask is False; last in an ``optax.chain``.

    ``update = where(mask, update, 0)``

    It changes only the kept weights of a pruned net. The parameters are those of a net of any library, or the dict of
    an ``SVI``: a leaf belongs to the site whose name ends as its path does (``params.Dense_0.kernel`` to
    ``net.Dense_0.kernel``). Parameters without a mask are trained as they would be.

    Args:
        masks: what :func:`keep_masks` returns, of the sites of this net.

    Raises:
        ValueError: masks of another net: a site without a parameter, or one of another shape.
        TypeError: masks that are no dict of boolean arrays.

    Example:
        >>> masks = {"net.Dense_0.kernel": jnp.array([True, False])}
        >>> params = {"params": {"Dense_0": {"kernel": jnp.array([1.0, 0.0]), "bias": jnp.zeros(1)}}}
        >>> tune = optax.chain(optax.sgd(1.0), keep_zeros(masks))
        >>> updates, _ = tune.update(jax.tree.map(jnp.ones_like, params), tune.init(params), params)
        >>> updates["params"]["Dense_0"]["kernel"]
        Array([-1.,  0.], dtype=float32)

    See also:
        :func:`pyro_vd.numpyro.keep_masks`, :func:`pyro_vd.numpyro.prune`.
    """

    if not isinstance(masks, Mapping):
        raise TypeError(
            f"keep_zeros: expected a dict from sites to masks, got {kind_of(masks)}; write "
            "keep_masks(guide, params=params)"
        )
    check_site_names("keep_zeros", masks)
    for site, mask in masks.items():
        if str(getattr(mask, "dtype", None)) != "bool":
            raise TypeError(
                f"keep_zeros: site {site!r}: expected a mask of truth values, got {kind_of(mask)}; write "
                "keep_masks(guide, params=params)"
            )

    def init(params: Any) -> optax.EmptyState:
        _masked(masks, params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return _masked(masks, updates), state

    return optax.GradientTransformation(init, update)


def _masked(masks: Mapping[str, Array], tree: Any) -> Any:
    """The tree with zeros where the mask of a leaf is False."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [_name(path) for path, _ in leaves]
    prefix = _prefix(list(masks), names)
    found = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        mask = masks.get(prefix + name.removeprefix("params."), masks.get(prefix + name))
        if mask is not None and mask.shape != jnp.shape(leaf):
            raise ValueError(
                f"keep_zeros: parameter {name!r}: expected the shape of its mask, {mask.shape}, got {jnp.shape(leaf)}; "
                "pass the masks of the guide that was trained with this net"
            )
        found.append(leaf if mask is None else jnp.where(mask, leaf, jnp.zeros_like(leaf)))
    return jax.tree.unflatten(structure, found)


def _prefix(sites: list[str], names: list[str]) -> str:
    """The part of a site's name before the name of its parameter: the same for all sites."""
    known = {known for name in names for known in (name, name.removeprefix("params."))}
    parts = sites[0].split(".") if sites else []
    for length in range(len(parts)):
        prefix = "".join(f"{part}." for part in parts[:length])
        if all(site.startswith(prefix) and site.removeprefix(prefix) in known for site in sites):
            return prefix
    raise ValueError(
        f"keep_zeros: expected masks for the parameters {names}, got masks for {sites}; pass the masks of the sites of "
        "this net, {site: mask for site, mask in keep_masks(guide, params=params).items() if site.startswith('net.')}"
    )


def _name(path: tuple) -> str:
    parts = [str(getattr(part, "name", getattr(part, "key", getattr(part, "idx", part)))) for part in path]
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts)  # of a variable of nnx
