"""Which input of a step is NaN or infinite, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_vd.numpyro.checks import latent_sites
from pyro_vd.numpyro.handlers import base_distribution


def non_finite_input(params: Mapping[str, Any], guide_trace: Any, args: tuple, kwargs: dict) -> str | None:
    """Name the first NaN or infinity among guide distributions, data arguments and parameters; None without one.

    Values that are not known yet, inside jit or grad, are passed over.

    Args:
        params: the parameters by name.
        guide_trace: a trace of the guide.
        args, kwargs: what the step was called with.
    """
    for where, array in (*_distributions(guide_trace), *_data(args, kwargs), *_parameters(params)):
        if isinstance(array, jax.core.Tracer) or not jnp.issubdtype(array.dtype, jnp.floating):  # type: ignore
            continue
        bad = int((~jnp.isfinite(array)).sum())
        if bad:
            return f"{where} holds {bad} NaN or infinite of {array.size} values"
    return None


def _distributions(trace: Any) -> Iterator[tuple[str, Array]]:
    for name, site in latent_sites(trace):
        for parameter, value in vars(base_distribution(site["fn"])).items():
            if isinstance(value, jax.Array):
                yield f"{parameter.strip('_')} of site {name!r}", value


def _data(args: tuple, kwargs: dict) -> Iterator[tuple[str, Array]]:
    for name, arg in (*enumerate(args), *kwargs.items()):
        for leaf in jax.tree.leaves(arg):
            if hasattr(leaf, "dtype"):
                yield f"data argument {name!r}", jnp.asarray(leaf)


def _parameters(params: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    for name, value in params.items():
        for leaf in jax.tree.leaves(value):
            yield f"parameter {name!r}", jnp.asarray(leaf)
