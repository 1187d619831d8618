"""How an automatic guide finds its sites: in the nets of its model, a state dict, and runs of the model."""

from __future__ import annotations

import copy
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_vd.arguments import check_finite_state, check_model
from pyro_vd.common.choice import check_matched
from pyro_vd.common.choice import matcher as site_matcher
from pyro_vd.guides import parameters
from pyro_vd.guides.coverage import Look, Prototype, kind_of_call, known_weights, look
from pyro_vd.guides.other_site import NormalSite, Starts, start_of
from pyro_vd.guides.start import Start, check_trainable
from pyro_vd.late import MadeLate, untrained
from pyro_vd.posteriors.sites import base_distribution
from pyro_vd.priors import ImproperLogUniform

Where = Callable[[str], bool] | str | tuple | list | None


class SiteGuide(AutoGuide):
    """Abstract: an automatic guide with parameters for the weights of a model, and for its other latent sites.

    The weights of every BayesianModule are known at once. Other latent sites are found in runs of the model: in the
    first call, and in every call of another kind until one has observed something.

    Args:
        model, where, init_loc_fn, create_plates: see :class:`pyro_vd.guides.base.WeightGuide`.
    """

    prototype_trace: Any  # of the first run of the model: no more than what it was called with
    unit_dim: Any = None  # dimension where the units lie, in families whose noise is shared by units
    _late: MadeLate | None = None  # parameters made in the first run, until a step has moved others

    @torch.inference_mode(False)  # tensors that are made in it cannot be trained
    def __init__(
        self, model: Callable, where: Where, init_loc_fn: Callable[[Any], Tensor], create_plates: Callable | None
    ):
        check_model(model)
        for name, value in (("where", where), ("init_loc_fn", init_loc_fn), ("create_plates", create_plates)):
            if isinstance(value, torch.nn.Module):
                raise TypeError(
                    f"{name}: expected a function or names of sites, got the module {type(value).__name__}; write "
                    f"{type(self).__name__}(model, where='net.0.*')"
                )
        super().__init__(Starts(init_loc_fn)(model), create_plates=create_plates)
        self.register_load_state_dict_pre_hook(check_finite_state)
        self._named, self._where = where, None if where is None else site_matcher(where)
        self._others: dict[str, str] = {}  # site that is not a weight -> name of its NormalSite
        self._prototypes: dict[str, Prototype] = {}  # of every site that is covered, in the order of the model
        self._starts: dict[str, Start] = {}  # site of a net -> what it started from, until the model has run
        self._calls: set[Any] | None = set()  # the kinds of calls seen; None once one has observed something
        for site, message in known_weights(self.model).items():
            if self._where is None or self._where(site):
                self._check_site(site, message)
                self._cover(site, message, weight=True)
                self._starts[site] = Start.of(message["infer"]["net_parameter"], self._loc(site), site)

    @property
    def weight_sites(self) -> tuple[str, ...]:
        """Names of the sites that are random weights, in model order.

        Those of a :class:`pyro_vd.BayesianModule` are known at once, those of a hand-written model from its first run.

        Raises:
            ValueError: no weight is known yet.
        """
        weights = tuple(site for site in self._prototypes if site not in self._others)
        if not weights:
            raise ValueError(
                f"{type(self).__name__}: expected a guide that has seen its model once, got a new one of a model "
                "without a BayesianModule that it covers; call guide(*args) with the arguments of the model first"
            )
        return weights

    @abstractmethod
    def _init_weight(self, site: str, value: Tensor) -> None:
        """Make the parameters of one weight site, its mean starting at ``value``."""

    @abstractmethod
    def _check_site(self, site: str, message: Any) -> None:
        """Raise where this family cannot cover a site."""

    @torch.inference_mode(False)
    def see(self, *args: Any, **kwargs: Any) -> None:
        """Run the model with these arguments, where that may show more of it, and cover what is this guide's.

        Raises:
            ValueError: no weight to cover, or one that this family cannot cover.
        """
        say_untrained(self)
        kind = None if self._calls is None else kind_of_call(args, kwargs)
        if self._calls is None or kind in self._calls:
            return
        if self._model is None:
            raise ValueError(
                f"{type(self).__name__}: expected a guide that has its model, got one that was pickled before it had "
                f"seen all of it; make {type(self).__name__}(model) and load its state_dict"
            )
        seen = look(self.model, args, kwargs)
        new = self._new(seen)
        known = {site: one.message for site, one in seen.latent.items() if site in self._prototypes}
        for site, message in known.items():
            self._check_shape(site, message)
        for site, weight in new.items():
            check = self._check_site if weight else lambda _, message: start_of(message)
            check(site, seen.latent[site].message)
        if not self._calls:
            self._leave_out([site for site in self._prototypes if site not in known])
        for site, message in known.items():
            self._follow(site, message)
            self._prototypes[site] = Prototype.of(message)
        before = list(self.parameters())
        for site, weight in new.items():
            self._cover(site, seen.latent[site].message, weight)
        if new and before:
            self._late = MadeLate(dict(self.named_parameters()), before)
        order = dict.fromkeys([*(site for site in seen.latent if site in self._prototypes), *self._prototypes])
        self._prototypes = {site: self._prototypes[site] for site in order}
        self._prototype_frames = {f.name: f for one in self._prototypes.values() for f in one.frames}
        self._calls = None if seen.observed else {*self._calls, kind}
        if self.prototype_trace is None:
            self.prototype_trace = Trace()
            self.prototype_trace.add_node("_INPUT", name="_INPUT", type="args", args=args, kwargs=kwargs)

    def _new(self, seen: Look) -> dict[str, bool]:
        """The sites that this guide covers from now on, and whether they are weights."""
        check_matched(type(self).__name__, self._named, dict.fromkeys([*seen.latent, *self._prototypes]))
        new, undecided = {}, False
        for site, one in seen.latent.items():
            if site in self._prototypes or not (self._where is None or self._where(site)):
                continue
            fn, infer = one.message["fn"], one.message["infer"]
            must = isinstance(base_distribution(fn), ImproperLogUniform) or "net_parameter" in infer
            weight = must or self._where is not None
            mine = (must and not one.in_minibatch) or seen.is_the_guides(site)
            if mine is None and weight and not one.on:
                mine = True  # named by where, in a run without data, and no label: labels depend on weights
            undecided |= mine is None and weight
            if mine:
                new[site] = weight
        if not (undecided or any(new.values()) or self._prototypes.keys() - self._others.keys()):
            reason = (
                "matches where" if self._where else "is a weight (of a BayesianModule, or under ImproperLogUniform)"
            )
            raise ValueError(
                f"{type(self).__name__}: expected a latent site that {reason}, got the sites {list(seen.latent)}; name "
                "the weights with where="
            )
        return new

    def _cover(self, site: str, message: Any, weight: bool) -> None:
        if weight:
            self._init_weight(site, message["value"].detach())
        else:
            self._cover_other(site, f"other_{len(self._others)}", start_of(message))
        self._prototypes[site] = Prototype.of(message)

    def _cover_other(self, site: str, part: str, loc: Tensor) -> None:
        setattr(self, part, NormalSite(site, loc))
        self._others[site] = part

    def _follow(self, site: str, message: Any) -> None:
        """If a net was moved, or given other values, before the model first ran, the start of its weight follows."""
        if site not in self._starts:
            return
        start, now = self._starts.pop(site), message["infer"]["net_parameter"]
        check_trainable(now, site)
        if (now.device, now.dtype) != (start.device, start.dtype):
            for table, name in parameters.tables(self, site):
                table[name].data = table[name].data.to(now.device, now.dtype)
        loc = self._loc(site)
        if start.is_followed(now, loc):
            loc.data.copy_(message["value"])

    def _leave_out(self, missing: list[str]) -> None:
        """Without the sites that the first run of the model does not sample."""
        loaded = [site for site in missing if site not in self._starts]
        if loaded:
            raise ValueError(
                f"{type(self).__name__}: expected a model with the latent sites of the state dict that was loaded, got "
                f"one that does not sample {loaded}; load the state dict of a guide of this model"
            )
        for site in missing:
            self._forget(site)
        if missing:
            warnings.warn(
                f"{type(self).__name__}: expected a model that samples the weights of every BayesianModule it refers "
                f"to, got a first run without {missing}; the guide has no parameters for them any more. Call it first "
                "with arguments for which the model samples them, or leave them out by where=",
                stacklevel=4,
            )

    def _forget(self, site: str) -> None:
        for table, name in list(parameters.tables(self, site)):
            del table[name]
        if site in self._others:
            delattr(self, self._others.pop(site))
        self._starts.pop(site, None)
        del self._prototypes[site]

    def _loc(self, site: str) -> Tensor:
        if site in self._others:
            return attrgetter(f"locs.{site}_unconstrained")(getattr(self, self._others[site]))
        return parameters.raw(self, "locs", site)

    def _check_shape(self, site: str, message: Any) -> None:
        value = start_of(message) if site in self._others else message["value"]
        if value.shape != (shape := self._loc(site).shape):
            raise ValueError(
                f"site {site!r}: expected the shape that {type(self).__name__} was made with, {tuple(shape)}, got "
                f"{tuple(value.shape)} in the model; make a new guide, or load the state dict of this model"
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Before the model has run, make the parameters of sites that the state dict has and no net."""
        state = {key.removeprefix(prefix): t for key, t in state_dict.items() if key.startswith(prefix)}
        made = [] if self._calls is None else list(self._foreseen(state))
        own = {key: tensor.shape for key, tensor in self.state_dict().items()}
        if made and own != {key: tensor.shape for key, tensor in state.items()}:  # torch names the mismatch
            for site in made:
                self._forget(site)
        for site in self._starts.keys() & {key.removeprefix("locs.") for key in state}:
            self._starts[site] = self._starts[site].given()
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def _foreseen(self, state: Mapping[str, Tensor]) -> Iterator[str]:
        for key, tensor in state.items():
            quantity, _, site = key.partition(".")
            if re.fullmatch(r"other_\d+", quantity) and site.startswith("locs."):
                site = site.removeprefix("locs.").removesuffix("_unconstrained")
            elif quantity != "locs":
                continue
            if site in self._prototypes or not (self._where is None or self._where(site)):
                continue
            if quantity == "locs":
                self._init_weight(site, tensor.detach().clone())
            else:
                self._cover_other(site, quantity, tensor.detach().clone())
            self._prototypes[site] = Prototype(tuple(tensor.shape), tensor.dim(), constraints.real, ())
            yield site

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's own method removes the model from the guide that is copied.
        return {**self.__dict__, "_model": None, "master": None, "_starts": {}, "_late": None}

    def __deepcopy__(self, memo: dict) -> Any:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin._model = self._model  # of the same model
        return twin

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {one.shape}" for site, one in self._prototypes.items())
        return f"{type(self).__name__}({sites})"


def say_untrained(guide: Any) -> None:
    """Warn, once, of parameters that the first run has made and a step has left alone, while it moved others."""
    if guide._late is not None and (names := guide._late.left_alone()):
        warnings.warn(untrained(names, "its first run", type(guide).__name__), stacklevel=6)
