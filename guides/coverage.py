"""Which latent sites of a model a guide covers, and which it leaves to the model.

A guide may be called first without labels, and a label that is not observed looks like any latent site. What tells
them apart is evidence. The posterior of a site on which no observation depends is its prior given what it depends on:
the model's own draw of it is exact, so an automatic guide leaves it to the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from pyro_vd._pyro import in_handlers_of, innermost
from pyro_vd._torch import tree_flatten, tree_map_only
from pyro_vd.module import BayesianModule
from pyro_vd.references import referenced_modules
from pyro_vd.rollback import note_buffers, undone


@dataclass(frozen=True)
class Prototype:
    """What a guide keeps of a latent site of the model: shape and support of its value, and the plates around it.

    Attributes:
        fixed: of a weight, returns what its layers keep fixed of it; None where that is nothing.
    """

    shape: tuple[int, ...]
    event_dim: int
    support: Any
    frames: tuple[Any, ...]
    fixed: Callable[[], Any] | None = None

    @staticmethod
    def of(message: Any) -> Prototype:
        fn = message["fn"]
        return Prototype(
            tuple(message["value"].shape),
            fn.event_dim,
            _detached(fn.support),
            tuple(message["cond_indep_stack"]),
            message["infer"].get("fixed"),
        )


@dataclass
class Latent:
    """A latent site in one run of a model.

    Attributes:
        message: Pyro's message of the site, without a gradient in its value.
        in_minibatch: inside a plate with subsampling, such as :func:`pyro_vd.data_plate`.
        on: the latent sites that its distribution depends on.
        evidence: whether an observed site depends on it, directly or through other latent sites.
        used: whether any other site depends on it.
    """

    message: Any
    in_minibatch: bool = False
    on: set[str] = field(default_factory=set)
    evidence: bool = False
    used: bool = False


@dataclass(frozen=True)
class Look:
    """The result of one run of a model: its latent sites in order, and the names of the observed ones."""

    latent: dict[str, Latent]
    observed: tuple[str, ...]
    trace: Any

    def is_the_guides(self, site: str) -> bool | None:
        """Whether an automatic guide covers a latent site; None where this run does not tell.

        It does not where the model observes nothing, and no latent site comes before this one, or some do and it
        might be a label.
        """
        latent = self.latent[site]
        if latent.in_minibatch:
            return False
        if latent.evidence or (latent.used and not latent.on):
            return True
        return False if self.observed else None


def look(model: Callable, args: tuple, kwargs: dict) -> Look:
    """Run a model once, and see which of its sites depend on which.

    Dependence is what autograd finds: a site that reaches another one through a comparison, an index or ``.item()``
    alone is not seen. Nothing is trained and no buffer of the modules that the model refers to changes.
    """
    recorder = _Recorder()
    recorded = in_handlers_of(model, recorder(innermost(model)))  # inside of handlers that hide sites
    with torch.enable_grad(), undone():
        for module in (part for root in referenced_modules(model) for part in root.modules()):
            note_buffers(module)
        args, kwargs = tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t, (args, kwargs))
        trace: Any = poutine.block(poutine.trace(recorded).get_trace)(*args, **kwargs)
    return _dependence(trace, recorder)


def known_weights(model: Callable) -> dict[str, Any]:
    """The messages of the weights of every BayesianModule that a model refers to, by site, without running the nets.

    They are sampled under the handlers that the model is wrapped in, so that ``poutine.block`` hides what it hides.

    Raises:
        ValueError: two of these modules have one name, or weights of one.
    """
    nets: dict[str, BayesianModule] = {}
    owners: dict[str, str] = {}
    for root in referenced_modules(model):
        for module in root.modules():
            if isinstance(module, BayesianModule) and nets.setdefault(module.name, module) is not module:
                raise ValueError(
                    f"expected every BayesianModule of a model to have a name of its own, got two named "
                    f"{module.name!r}; write BayesianModule(..., name=...) for one of them"
                )
    for net in nets.values():
        for site in map(net.site, net.weight_names):
            if owners.setdefault(site, net.name) != net.name:
                raise ValueError(
                    f"site {site!r}: expected every weight of a model to have a site of its own, got one in the "
                    f"BayesianModules {owners[site]!r} and {net.name!r}; write BayesianModule(..., name=...) for one "
                    "of them, not the name of the other with a layer behind it"
                )

    def weights(*args: Any, **kwargs: Any) -> None:
        for net in nets.values():
            net.sample_weights()

    trace: Any = poutine.block(poutine.trace(in_handlers_of(model, weights)).get_trace)()
    return dict(trace.iter_stochastic_nodes())


def kind_of_call(args: tuple, kwargs: dict) -> Any:
    """What may decide which sites a call observes: which arguments it has, and those that are not data."""
    leaves, structure = tree_flatten((args, kwargs))
    return repr(structure), tuple(leaf if isinstance(leaf, (bool, str, type(None))) else type(leaf) for leaf in leaves)


class _Recorder(Messenger):
    """Makes the value of every latent site a leaf of the graph; keeps all sites, and which plates subsample."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Any] = {}
        self.subsampling: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and (msg["value"] is not None or msg["fn"].subsample_size is not None):
            self.subsampling.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        value = msg["value"]
        if not msg["is_observed"] and isinstance(value, Tensor) and value.is_floating_point():
            msg["value"] = value.detach().requires_grad_()
        self.sites[msg["name"]] = dict(msg)

    def in_minibatch(self, site: str) -> bool:
        frames = self.sites[site]["cond_indep_stack"]
        return any(f.name in self.subsampling or f.full_size not in (None, f.size) for f in frames)


def _dependence(trace: Any, recorder: _Recorder) -> Look:
    names = {site["value"]: name for name, site in recorder.sites.items() if not site["is_observed"]}
    found: dict[str, Latent] = {}
    observed = []
    for name, site in recorder.sites.items():
        seen = site["is_observed"]
        tensors = _tensors([site["fn"], site["scale"], site["mask"], site["value"] if seen else None])
        on = {names[leaf] for leaf in _reached(list(tensors)) if leaf in names} - {name}
        for other in on & found.keys():
            found[other].used = True
            found[other].evidence |= seen
        if seen:
            observed.append(name)
        else:
            message = {**site, "value": site["value"].detach()}
            imputed = (
                name.removesuffix("_unobserved") + "_observed" in observed
            )  # of obs_mask, which Pyro has guides cover
            found[name] = Latent(message, recorder.in_minibatch(name), on, evidence=imputed)
    for one in reversed(found.values()):  # a site on which one with evidence depends has evidence too
        for other in one.on if one.evidence else ():
            found[other].evidence = True
    visible = {name: one for name, one in found.items() if name in trace.nodes}
    return Look(visible, tuple(observed), trace)


def _tensors(value: Any, within: tuple[Any, ...] = ()) -> Iterator[Tensor]:
    """The tensors in a distribution, its transforms and containers; ``within`` are the objects that hold it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Distribution, Transform)):
        if not any(value is one for one in within):  # a transform and its inverse hold each other
            yield from _tensors(list(vars(value).values()), (*within, value))
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part, within)


def _reached(tensors: list[Tensor]) -> set[Tensor]:
    """The leaves of the graph that tensors were computed from."""
    found = {tensor for tensor in tensors if tensor.requires_grad and tensor.grad_fn is None}
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node: Any = waiting.pop()
        if hasattr(node, "variable"):
            found.add(node.variable)
        new = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= new
        waiting += new
    return found


def moves(support: Any) -> bool:
    """Whether the bounds of a constraint depend on a latent site or a parameter, in a :class:`Look` at a model."""
    return _detached(support) is not support


def _detached(support: Any) -> Any:
    """A constraint without a gradient in its bounds, which could not be copied."""
    parts = vars(support).items() if hasattr(support, "__dict__") else ()
    new = {k: v.detach() for k, v in parts if isinstance(v, Tensor) and v.requires_grad}
    new |= {k: _detached(v) for k, v in parts if isinstance(v, constraints.Constraint)}
    if all(vars(support)[k] is v for k, v in new.items()):
        return support
    support = copy.copy(support)
    vars(support).update(new)
    return support
