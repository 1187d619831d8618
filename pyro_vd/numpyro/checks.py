"""Checks that model and guide fit together, site by site; the key of a run; which input is not finite."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import CategoricalLogits, CategoricalProbs, constraints
from numpyro.primitives import Messenger

from pyro_vd.common.options import check_number
from pyro_vd.numpyro._jax import is_traced
from pyro_vd.numpyro.arguments import check_names
from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.posteriors import WeightPosterior


class GuideCovers(Messenger):
    """Raises at a latent site that the guide does not have, before its prior is drawn."""

    def __init__(self, fn: Any, guide_trace: Any):
        super().__init__(fn)
        self.guide_trace = guide_trace

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["name"] in self.guide_trace:
            return
        if msg["value"] is None:
            raise ValueError(
                f"site {msg['name']!r}: expected a guide that samples every latent site of the model, got one that "
                f"samples {_latent_names(self.guide_trace)}; add numpyro.sample({msg['name']!r}, ...) to the guide, or "
                "obs= to the model"
            )


def check_sites(model_trace: Any, guide_trace: Any) -> None:
    """Raise for a site of the guide that is not reparameterised, or that the model does not have."""
    for name, site in latent_sites(guide_trace):
        if not base_distribution(site["fn"]).has_rsample:
            raise NotImplementedError(
                f"site {name!r}: expected a reparameterised guide distribution, got {describe(site['fn'])}: all "
                "distributions in the guide must be fully reparameterized; use numpyro.infer.TraceGraph_ELBO for this "
                "guide"
            )
        if name in model_trace and model_trace[name].get("is_observed"):
            raise ValueError(
                f"site {name!r}: expected a guide of the latent sites of the model, got one that samples what the "
                "model observes; was an automatic guide first called without the labels? Make a new guide, and put the "
                "labels into vd.data_plate, or give them in the first call"
            )
        if name not in model_trace and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r}: expected a guide with the sites of the model, {_latent_names(model_trace)}, got one "
                'more; remove it, or mark it infer={"is_auxiliary": True}'
            )


def warn_of_single_draws(model_trace: Any, guide_trace: Any, estimator: str, shared_sites: Any, warned: set) -> None:
    """Warn once for each weight that is drawn once a step although the estimator asks for more.

    A weight is a site on the real line of two dimensions or more, outside of plates.
    """
    if estimator == "shared":
        return
    for name, site in latent_sites(model_trace):
        drawn = guide_trace.get(name)
        if drawn is None or name in shared_sites or isinstance(base_distribution(drawn["fn"]), WeightPosterior):
            continue
        fn, support = site["fn"], site["fn"].support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        is_weight = fn.event_dim >= 2 and not fn.batch_shape and not site["cond_indep_stack"]
        if is_weight and support is constraints.real and (name, "drawn once") not in warned:
            warned.add((name, "drawn once"))
            warnings.warn(
                f"site {name!r}: expected a distribution that estimator={estimator!r} has a form for, got "
                f"{describe(drawn['fn'])}: the weight is drawn once a step, as by 'shared'. Write "
                "pyro_vd.numpyro.DropoutNormal(loc, log_sigma2=...) in the guide or a guide of "
                f"pyro_vd.guides.numpyro, or shared_sites=[{name!r}]",
                stacklevel=2,
            )


def check_labels(model_trace: Any) -> None:
    """Raise where an observed value would be broadcast against its likelihood, or is no class of a Categorical."""
    for name, site in model_trace.items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        fn, got = site["fn"], jnp.shape(site["value"])
        expected = (*site["kwargs"].get("sample_shape", ()), *fn.batch_shape, *fn.event_shape)
        if got != expected:
            raise ValueError(
                f"site {name!r}: expected an observed value of shape {tuple(expected)}, that of its likelihood "
                f"{describe(fn)} (batch {tuple(fn.batch_shape)}, event {tuple(fn.event_shape)}), got {tuple(got)}, "
                f"which would be broadcast; {_reshaped(tuple(expected), tuple(got))}"
            )
        inner: Any = fn
        while hasattr(inner, "base_dist"):  # of to_event, expand, mask
            inner = inner.base_dist
        dtype = jnp.result_type(site["value"])
        if isinstance(inner, (CategoricalLogits, CategoricalProbs)) and not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(
                f"site {name!r}: expected classes as whole numbers for {type(inner).__name__}, got {dtype}; write "
                "obs=y.astype(int), after a look that y holds no NaN"
            )


def _reshaped(expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    if tuple(size for size in got if size != 1) == tuple(size for size in expected if size != 1):
        return f"write obs=y.reshape({expected}) if the values are in that order, or give the likelihood y's shape"
    return "give the model labels and inputs of the same examples, or the likelihood y's shape (.to_event, .squeeze)"


def check_parameter_sites(owner: str, params: Mapping[str, Any], guide_trace: Any, model_trace: Any = None) -> None:
    """Raise unless ``params`` has every parameter of the guide, and of the model, and no other.

    Before the model has run, only parameters that the guide misses are reported.
    """
    sites = [*guide_trace.items(), *([] if model_trace is None else model_trace.items())]
    needed = {name: None for name, site in sites if site["type"] == "param"}
    state = {name for name, site in sites if site["type"] == "mutable"}
    check_names(owner, params, needed, params if model_trace is None else state)


def check_scales(name: str, model_scale: Any, guide_scale: Any) -> None:
    """Raise where model and guide scale a latent site differently."""
    model_scale, guide_scale = (1.0 if scale is None else scale for scale in (model_scale, guide_scale))
    if any(is_traced(scale) for scale in (model_scale, guide_scale)):
        return  # their values are not known before the step runs
    if not math.isclose(float(model_scale), float(guide_scale), rel_tol=1e-6):
        raise ValueError(
            f"site {name!r}: expected the same scale in model and guide, got {model_scale} and {guide_scale}: an "
            "analytic KL has one scale, so the model's would be ignored. To anneal the KL write "
            "TraceVD_ELBO(kl_weight=...)"
        )


def check_finite_number(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number >= 0, or an array of no dimensions (whose value may not be known yet)."""
    if isinstance(value, (jax.Array, np.ndarray)):
        if value.ndim != 0:
            raise ValueError(f"{name}: expected a number or a 0-dim array, got shape {tuple(value.shape)}")
        if value.dtype.kind not in "iuf" and not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{name}: expected a finite number >= 0, got an array of {value.dtype}; write 1.0")
        if is_traced(value):
            return
    check_number(name, value, at_least=0)


def latent_sites(trace: Any) -> list[tuple[str, Any]]:
    """Name and message of every sample site that is not observed."""
    return [(name, site) for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]]


def _latent_names(trace: Any) -> list[str]:
    return [name for name, site in latent_sites(trace) if not site["infer"].get("is_auxiliary")]


def describe(fn: Any) -> str:
    """Class name of a distribution, with its ``to_event``."""
    inner: Any = base_distribution(fn)
    return type(inner).__name__ + (f".to_event({fn.event_dim - inner.event_dim})" if inner is not fn else "")


def non_finite_input(params: Mapping[str, Any], guide_trace: Any, args: tuple, kwargs: dict) -> str | None:
    """Name the first NaN or infinity among guide distributions, data arguments and parameters; None without one.

    Values that are not known yet, inside jit, are skipped.

    Args:
        params: the parameters by name.
        guide_trace: a trace of the guide.
        args, kwargs: what the step was called with.
    """
    for where, array in (*_distributions(guide_trace), *_data(args, kwargs), *_parameters(params)):
        array = jax.lax.stop_gradient(array)  # which is known inside grad
        if is_traced(array) or not jnp.issubdtype(array.dtype, jnp.floating):
            continue
        with jax.ensure_compile_time_eval():  # the error of a model may come while it is being compiled
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
