"""Where a guide starts: its model seen once for the shapes of its sites, with nothing computed but their starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array
from numpyro import handlers
from numpyro.infer.initialization import init_to_median

from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.priors import ImproperLogUniform


def init_to_net_value(site: Any = None) -> Any:
    """Start a weight at the value its net has: a pretrained net is a warm start.

    A site of a hand-written model starts at its prior's median, and under the improper log-uniform
    prior, which has none, uniformly within ``1 / sqrt(fan_in)``, its last dimension taken for that of its output units.
    """
    if site is None:  # as NumPyro's own ask for their function
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


def started(model: Callable, key: Array, init_loc_fn: Callable, other: str | None = None) -> Callable:
    """The model with every latent site at its start, but for the one that another guide starts."""

    def value(site: Any) -> Any:
        if site["type"] != "sample" or site["is_observed"] or site["value"] is not None or site["name"] == other:
            return None
        with jax.ensure_compile_time_eval():
            return init_loc_fn(site)

    def seeded(*args: Any, **kwargs: Any) -> Any:
        with _Seed(rng_seed=key):
            return model(*args, **kwargs)

    return handlers.substitute(seeded, substitute_fn=value)


def alone(model: Callable, key: Array, init_loc_fn: Callable, site: str) -> Callable:
    """The model with its plates and this one latent site, for a guide of it."""
    return handlers.block(
        started(model, key, init_loc_fn, site), hide_fn=lambda msg: msg["type"] != "plate" and msg.get("name") != site
    )


def seen(program: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The sites of a program that :func:`started` made."""
    sites: dict[str, Any] = {}
    with handlers.block():
        jax.eval_shape(lambda: sites.update(handlers.trace(program).get_trace(*args, **kwargs)))
    return sites


class _Seed(handlers.seed):
    """Keys that are values also where the values of sites are not computed."""

    def process_message(self, msg: Any) -> None:
        with jax.ensure_compile_time_eval():
            super().process_message(msg)
