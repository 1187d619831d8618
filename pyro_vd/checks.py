"""What a pair of model and guide must be, checked site by site."""

from __future__ import annotations

import math
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vd.handlers import base_distribution


class GuideCovers(Messenger):
    """Stops the model at a latent site that the guide does not have, before its prior is drawn."""

    def __init__(self, guide_trace: Any):
        super().__init__()
        self.guide_trace = guide_trace

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or msg["name"] in self.guide_trace.nodes:
            return
        if msg["value"] is None:
            raise ValueError(
                f"site {msg['name']!r}: expected a guide that samples every latent site of the model, got one that "
                f"samples {_latent_names(self.guide_trace)}; add pyro.sample({msg['name']!r}, ...) to the guide, or "
                "obs= to the model"
            )


def check_sites(model_trace: Any, guide_trace: Any) -> None:
    """Raise for a site of the guide that is not reparameterised, or that the model does not have."""
    for name, site in guide_trace.iter_stochastic_nodes():
        if not site["fn"].has_rsample:
            raise NotImplementedError(
                f"site {name!r}: expected a reparameterised guide distribution, got {describe(site['fn'])}: all "
                "distributions in the guide must be fully reparameterized; use pyro.infer.TraceGraph_ELBO for this "
                "guide"
            )
        if name not in model_trace.nodes and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r}: expected a guide with the sites of the model, {_latent_names(model_trace)}, got one "
                "more; "
                'remove it, or mark it infer={"is_auxiliary": True}'
            )


def check_scales(name: str, model_scale: Any, guide_scale: Any) -> None:
    """Raise where model and guide scale a latent site differently."""
    numbers = isinstance(model_scale, (int, float)) and isinstance(guide_scale, (int, float))
    tensors = isinstance(model_scale, Tensor) and isinstance(
        guide_scale, Tensor
    )  # not compared: a host synchronisation
    if not (tensors or (numbers and math.isclose(model_scale, guide_scale, rel_tol=1e-6))):
        raise ValueError(
            f"site {name!r}: expected the same scale in model and guide, got {model_scale} and {guide_scale}: an "
            "analytic KL has one scale, so the model's would be ignored. To anneal the KL write "
            "TraceVD_ELBO(kl_weight=...)"
        )


def _latent_names(trace: Any) -> list[str]:
    return [name for name, site in trace.iter_stochastic_nodes() if not site["infer"].get("is_auxiliary")]


def describe(fn: Any) -> str:
    """Class name of a distribution, with its ``to_event``."""
    inner: Any = base_distribution(fn)
    return type(inner).__name__ + (f".to_event({fn.event_dim - inner.event_dim})" if inner is not fn else "")
