"""What the distribution of a sample site says of its weight."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pyro.distributions import Normal
from torch.distributions import Distribution, Independent

from pyro_vd.posteriors.normal import DropoutNormal


def weight_posterior(msg: Any, normals: bool) -> Any:
    """The distribution of a site without its ``to_event``; with ``normals``, a Gaussian weight for a plain Normal."""
    posterior: Any = base_distribution(msg["fn"])
    if normals and type(posterior) is Normal and is_matrix(msg):
        return DropoutNormal(posterior.loc, log_sigma2=2 * posterior.scale.log())
    return posterior


def is_matrix(msg: Any) -> bool:
    """Whether a site has two event dimensions or more and no plate, as a weight has."""
    fn = msg["fn"]
    return fn.event_dim >= 2 and not fn.batch_shape and not msg["cond_indep_stack"]


def is_function_of(site: str, noises: Collection[str]) -> bool:
    """Whether a Delta at a site is a function of auxiliary sites: of its own, or of one for all, as in AutoNormal."""
    return f"{site}_unconstrained" in noises or any(not noise.endswith("_unconstrained") for noise in noises)


def base_distribution(fn: Any) -> Distribution:
    """The distribution under any ``to_event``."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn
