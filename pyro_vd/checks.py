"""Checks that model and guide fit together, site by site; and which input of a step is not finite."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, constraints

from pyro_vd._torch import leaves_of, tree_leaves
from pyro_vd.arguments import FAILURES
from pyro_vd.handlers import EstimatorMessenger
from pyro_vd.posteriors.sites import base_distribution, is_function_of
from pyro_vd.weights import RandomWeight

_PARTICLES = "num_particles_vectorized"  # Pyro's name for the plate of vectorised particles


class GuideCovers(ReplayMessenger):
    """Replays a guide's trace; raises at a latent site that the guide does not have, before its prior is drawn.

    Attributes:
        weights: the sites that are weights, as far as the model has come: those of a BayesianModule, each with the
            parameter of its net, and with None those of two dimensions or more on the real line, outside of plates.
    """

    sees_parameters = False

    def __init__(self, guide_trace: Any):
        super().__init__(trace=guide_trace)
        self._covered = guide_trace.nodes
        self.weights: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            super()._pyro_sample(msg)
            return
        name, parameter = msg["name"], msg["infer"].get("net_parameter")
        if parameter is not None or _is_matrix(msg):
            self.weights[name] = parameter
        if msg["is_observed"] or name in self._covered:
            super()._pyro_sample(msg)
        elif msg["value"] is None:
            advice = f"add pyro.sample({name!r}, ...) to the guide, or obs= to the model"
            if msg["cond_indep_stack"]:
                advice += (
                    ". Automatic guides leave a site in a plate with subsampling, and one on which nothing observed "
                    "depends, to the model or to a guide by hand (pyro_vd.guides.mixed_guide)"
                )
            raise ValueError(
                f"site {name!r}: expected a guide that samples every latent site of the model, got one that "
                f"samples {_latent_names(self.trace)}; {advice}"
            )


def _is_matrix(msg: Any) -> bool:
    fn = msg["fn"]
    is_one = not msg["is_observed"] and fn.event_dim >= 2 and not fn.batch_shape and not msg["cond_indep_stack"]
    return is_one and msg["type"] == "sample" and _is_real(fn.support)


def _is_real(support: Any) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def check_sites(model_trace: Any, guide_trace: Any) -> None:
    """Raise for a site of the guide that is not reparameterised, that the model does not have, or that it observes."""
    for name, site in guide_trace.nodes.items():
        if site["type"] != "sample" or site["infer"].get("_deterministic"):
            continue
        if site["is_observed"] and name in model_trace.nodes:
            continue
        other = model_trace.nodes.get(name)
        if other is not None and not other["is_observed"] and not _is_of_shape(site["fn"], other["fn"]):
            expected, got = tuple(other["fn"].shape()), tuple(site["fn"].shape())
            in_plate = len(other["cond_indep_stack"]) > len(site["cond_indep_stack"])
            instead = (
                "the model samples it inside a plate; call a net before the plate, and put only the likelihood inside"
                if in_plate
                else "write parameters of the model's shape"
            )
            raise ValueError(
                f"site {name!r}: expected a guide distribution of shape {expected}, that of the model, got "
                f"{describe(site['fn'])} of shape {got}, whose values would be broadcast; {instead}"
            )
        if not site["fn"].has_rsample:
            reason = getattr(base_distribution(site["fn"]), "_no_rsample", None)
            instead = (
                "all distributions in the guide must be fully reparameterized; use pyro.infer.TraceGraph_ELBO for this "
                "guide"
            )
            if isinstance(site["fn"], Unit):  # pyro.factor
                instead = (
                    "a factor; write pyro.factor(..., has_rsample=True) where it is computed from reparameterised "
                    "draws, or use pyro.infer.TraceGraph_ELBO for this guide"
                )
            raise NotImplementedError(
                f"site {name!r}: expected a reparameterised guide distribution, got {describe(site['fn'])}: "
                f"{f'with {reason}' if reason else instead}"
            )
        if name not in model_trace.nodes and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r}: expected a guide with the sites of the model, {_latent_names(model_trace)}, got one "
                "more; "
                'remove it, or mark it infer={"is_auxiliary": True}'
            )
        if name in model_trace.nodes and model_trace.nodes[name]["is_observed"]:
            raise ValueError(
                f"site {name!r}: expected a guide without what the model observes, got one that samples it; remove it "
                "from the guide, or call an automatic guide first with the arguments of training"
            )


def _is_of_shape(q: Any, p: Any) -> bool:
    if q.batch_shape == p.batch_shape and q.event_shape == p.event_shape:
        return True
    sizes = zip_longest(reversed(q.shape()), reversed(p.shape()), fillvalue=1)
    return all(one == other for one, other in sizes)


def warn_of_single_draws(weights: Any, guide_trace: Any, messenger: EstimatorMessenger) -> None:
    """Warn once for each of the ``weights`` that is drawn once a step although the estimator asks for more."""
    warned = messenger.warned
    for name in weights:
        site = guide_trace.nodes.get(name)
        if site is None or isinstance(site["value"], RandomWeight):
            continue
        if messenger.estimator == "shared" or name in messenger.shared_sites:
            continue
        if messenger.estimator in getattr(base_distribution(site["fn"]), "estimators", ()):
            continue  # a handler of the user has given it a value: posterior_mean, say
        if is_point(name, guide_trace):
            continue
        if (name, "drawn once") not in warned:
            warned.add((name, "drawn once"))
            warnings.warn(
                f"site {name!r}: expected a distribution that estimator={messenger.estimator!r} has a form for, got "
                f"{describe(site['fn'])}: the weight is drawn once a step, as by 'shared'. Write "
                "pyro_vd.DropoutNormal(loc, log_sigma2=...) in the guide or a guide of pyro_vd.guides, or "
                f"shared_sites=[{name!r}]",
                stacklevel=2,
            )


def is_point(name: str, guide_trace: Any) -> bool:
    """Whether a weight has no noise at all, as with ``AutoDelta``; ``AutoNormal`` has its noise in another site."""
    if not isinstance(base_distribution(guide_trace.nodes[name]["fn"]), Delta):
        return False
    noises = [other for other, site in guide_trace.iter_stochastic_nodes() if site["infer"].get("is_auxiliary")]
    return not is_function_of(name, noises)


def check_observed(model_trace: Any) -> None:
    """Raise for an observed value that would be broadcast against its distribution, into unintended pairs."""
    for name in model_trace.observation_nodes:
        site = model_trace.nodes[name]
        fn, value = site["fn"], site["value"]
        if not isinstance(value, Tensor) or site["infer"].get("_deterministic"):
            continue
        shape, got, event_dim = fn.batch_shape + fn.event_shape, value.shape, fn.event_dim
        if got == shape:
            continue
        # The plate of vectorised particles is the one that repeats the data on purpose.
        free = {event_dim - f.dim for f in site["cond_indep_stack"] if f.name == _PARTICLES and f.dim is not None}
        padded = (1,) * (len(shape) - len(got)) + tuple(got[max(0, len(got) - len(shape)) :])
        wrong = [
            place
            for place, size, own in zip(range(len(shape), 0, -1), shape, padded, strict=True)
            if size != own and place not in free and (size > 1 or (place <= event_dim and isinstance(fn, Independent)))
        ]
        if wrong:
            instead = ""
            if math.prod(got) == math.prod(shape):
                instead = f"write obs=y.reshape({tuple(shape)}), or "
            elif all(own in (1, size) for own, size in zip(padded, shape, strict=True)):
                instead = f"write obs=y.expand({tuple(shape)}) to repeat it on purpose, or "
            raise ValueError(
                f"site {name!r}: expected an observed value of shape {tuple(shape)}, that of {describe(fn)}, got "
                f"{tuple(got)}, which would be broadcast; {instead}give the distribution the shape of y"
            )


@torch.no_grad()
def holds_non_finite(args: tuple, kwargs: dict) -> bool:
    """Whether an argument holds NaN or infinity: the loss may be finite and its gradient not."""
    data = [leaf for leaf in leaves_of(args, kwargs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    # A sum is finite only if its terms are; where it is not, it may have overflowed.
    if not data or math.isfinite(functools.reduce(torch.add, [leaf.sum() for leaf in data]).item()):
        return False
    return any(map(_count_bad, data))


def check_gradient(loss: Tensor, parameters: dict[str, Tensor], args: tuple, kwargs: dict) -> None:
    """Raise for a gradient that is not finite, where :func:`holds_non_finite` says that an argument may be why."""
    learned = {name: value for name, value in parameters.items() if value.requires_grad}
    if not learned:
        return
    gradients = torch.autograd.grad(loss, list(learned.values()), retain_graph=True, allow_unused=True)
    for name, gradient in zip(learned, gradients, strict=True):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            reason = next(
                (
                    f"{where} holds {number} NaN or infinite of {leaf.numel()} values"
                    for where, leaf in _data(args, kwargs)
                    if (number := _count_bad(leaf))
                )
            )
            raise ValueError(f"parameter {name!r}: expected a finite gradient, got one that is not: {reason}")


def check_scales(name: str, model_scale: Any, guide_scale: Any) -> None:
    """Raise where model and guide scale a latent site differently."""
    numbers = isinstance(model_scale, (int, float)) and isinstance(guide_scale, (int, float))
    # Tensors are not compared, since that would synchronise with the host.
    tensors = isinstance(model_scale, Tensor) and isinstance(guide_scale, Tensor)
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
    dims = len(fn.event_shape) - len(inner.event_shape)  # of torch.distributions too
    return type(inner).__name__ + (f".to_event({dims})" if inner is not fn else "")


def non_finite_input(guide: Any, args: tuple, kwargs: dict, model: Any = None) -> str | None:
    """Name the first NaN or infinity among distributions of sites, data arguments and parameters; None without one.

    Args:
        guide: the guide, or its trace.
        args, kwargs: what the step was called with.
        model: for its priors too.
    """
    trace = guide if isinstance(guide, Trace) else poutine.block(poutine.trace(guide).get_trace)(*args, **kwargs)
    inputs = [*_distributions(trace), *_data(args, kwargs), *_parameters()]
    if model is not None:
        with suppress(*FAILURES):
            seen: Any = poutine.block(poutine.trace(poutine.replay(model, trace=trace)).get_trace)(*args, **kwargs)
            inputs += [(where.replace(" of", " of the prior of", 1), tensor) for where, tensor in _distributions(seen)]
    bad = [(where, tensor, number) for where, tensor in inputs if (number := _count_bad(tensor))]
    # NaN first: infinity may be meant, in the mask of an attention.
    for where, tensor, number in sorted(bad, key=lambda one: not bool(torch.isnan(one[1]).any())):
        return f"{where} holds {number} NaN or infinite of {tensor.numel()} values"
    return None


def _count_bad(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0


def _distributions(trace: Trace) -> Iterator[tuple[str, Tensor]]:
    for name, site in trace.iter_stochastic_nodes():
        for parameter, value in vars(base_distribution(site["fn"])).items():
            if isinstance(value, Tensor):
                yield f"{parameter.strip('_')} of site {name!r}", value


def _data(args: tuple, kwargs: dict) -> Iterator[tuple[str, Tensor]]:
    for name, arg in (*enumerate(args), *kwargs.items()):
        for leaf in tree_leaves(arg):
            if isinstance(leaf, Tensor):
                yield f"data argument {name!r}", leaf


def _parameters() -> Iterator[tuple[str, Tensor]]:
    for name, value in pyro.get_param_store().named_parameters():
        yield f"parameter {name!r}", value
