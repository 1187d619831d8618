"""Where a guide starts: its model is run once for the shapes of its sites."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.initialization import init_to_median

from pyro_vd.numpyro._jax import is_traced
from pyro_vd.numpyro.arguments import VALUE_TAKEN
from pyro_vd.numpyro.checks import latent_sites
from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.priors import ImproperLogUniform


def init_to_net_value(site: Any = None) -> Any:
    """Start a weight at the value its net has: a pretrained net is a warm start.

    A site of a hand-written model starts at its prior's median, and under the improper log-uniform
    prior, which has none, uniformly within ``1 / sqrt(fan_in)``, its last dimension taken for that of its output units.
    """
    if site is None:  # as with NumPyro's own functions
        return partial(init_to_net_value)
    if site["type"] != "sample" or site["is_observed"]:
        return None
    parameter = site["infer"].get("net_parameter")
    if parameter is not None:
        return parameter
    if isinstance(base_distribution(site["fn"]), ImproperLogUniform):
        shape = site["fn"].shape()
        fan_in = math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)
        return jax.random.uniform(site["kwargs"]["rng_key"], shape, minval=-1, maxval=1) / math.sqrt(max(fan_in, 1))
    return init_to_median(site)


def seen(program: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The sites of a program that :func:`started` made.

    The program is run for its shapes alone; only the starts are computed. Where a start or a distribution depends on
    arrays that the model computes, or the model asks for the value of one, the program is run for their values too.
    """
    sites: dict[str, Any] = {}
    with handlers.block():
        try:
            jax.eval_shape(lambda: sites.update(handlers.trace(program).get_trace(*args, **kwargs)))
            by_value = any(map(_is_abstract, dict(latent_sites(sites)).values()))
        except VALUE_TAKEN:
            by_value = True
        if by_value:
            with jax.ensure_compile_time_eval():
                sites = handlers.trace(program).get_trace(*args, **kwargs)
    return sites


def started(model: Callable, key: Array, init_loc_fn: Callable) -> Callable:
    """The model with every latent site at its start; one whose support has no map from the real line is drawn.

    No guide covers such a site, a direction say: it is a label, which is not observed in this call.
    """

    def value(site: Any) -> Any:
        if site["type"] != "sample" or site["is_observed"] or site["value"] is not None:
            return None
        try:
            with jax.ensure_compile_time_eval():
                return init_loc_fn(site)
        except (ValueError, NotImplementedError):
            if _has_map(site["fn"].support):
                raise
            return None

    def seeded(*args: Any, **kwargs: Any) -> Any:
        with _Seed(rng_seed=key):
            return model(*args, **kwargs)

    return handlers.substitute(seeded, substitute_fn=value)


def _is_abstract(site: Any) -> bool:
    """Whether a site's start, or the distribution of one that is not a weight, is unknown without its values."""
    kept = [site["value"]] if "net_parameter" in site["infer"] else [site["value"], site["fn"]]
    return any(map(is_traced, jax.tree.leaves(kept)))


def _has_map(support: Any) -> bool:
    try:
        biject_to(support)
    except NotImplementedError:
        return False
    return True


class _Seed(handlers.seed):
    """Keys that are values also where the values of sites are not computed."""

    def process_message(self, msg: Any) -> None:
        with jax.ensure_compile_time_eval():
            super().process_message(msg)
