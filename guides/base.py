"""What every guide of random weights shares: which sites it covers, where it starts, how it samples."""

from __future__ import annotations

import fnmatch
import math
import operator
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.guides import AutoGuide, deep_setattr
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vd.handlers import base_distribution
from pyro_vd.posteriors import WeightPosterior
from pyro_vd.priors import ImproperLogUniform

Where = Callable[[str], bool] | str | tuple | list | None


def init_to_net_value(site: Any) -> Tensor:
    """Start a weight at the value its net has: a pretrained net is a warm start.

    A site of a hand-written model starts at its prior's median, and under the improper log-uniform
    prior, which has none, as ``nn.Linear`` starts its weights.
    """
    parameter = site["infer"].get("net_parameter")
    if parameter is not None:
        return parameter.detach().clone()
    if isinstance(base_distribution(site["fn"]), ImproperLogUniform):
        shape = site["fn"].shape()
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
        return torch.empty(shape).uniform_(-1, 1) / math.sqrt(max(fan_in, 1))
    return init_to_median(site)


class WeightGuide(AutoGuide):
    """Abstract: a mean-field automatic guide with a :class:`WeightPosterior` at every weight site.

    Weight sites are those of a :class:`pyro_vd.BayesianModule`, those with the improper log-uniform prior, and those
    that ``where`` names. Without ``where``, every other latent site (a noise scale, say) gets Pyro's
    ``AutoNormal``, whose KL is estimated from its draw. With ``where``, only the sites it matches are
    covered, and several guides are combined by ``pyro.infer.autoguide.AutoGuideList``.

    Args:
        model: a Pyro model.
        where: site name or pattern (``"net.0.*"``), several, or a callable ``site_name -> bool``.
        init_loc_fn: where the mean of each site starts, as in Pyro's automatic guides.
        create_plates: as in Pyro's automatic guides.

    Raises:
        ValueError: ``where`` matches no latent site of the model; a site this family cannot cover.
    """

    def __init__(
        self,
        model: Callable,
        *,
        where: Where = None,
        init_loc_fn: Callable[[Any], Tensor] = init_to_net_value,
        create_plates: Callable | None = None,
    ):
        if not callable(where):
            patterns = [where] if isinstance(where, str) else where
            where = None if patterns is None else lambda name: any(fnmatch.fnmatchcase(name, p) for p in patterns)
        self._where = where
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)

    @property
    def weight_sites(self) -> tuple[str, ...]:
        """Names of the sites that are random weights, in model order.

        Raises:
            ValueError: before the first call, when the model has not been seen.
        """
        if self.prototype_trace is None:
            raise ValueError(
                f"{type(self).__name__}: expected a guide that has seen its model once, got a new one; call guide(*args) "
                "with the arguments of the model first"
            )
        return self._weight_sites

    @abstractmethod
    def posterior(self, site: str) -> WeightPosterior:
        """The distribution of the weight at ``site``, without ``to_event``, from the current parameters."""

    @abstractmethod
    def _init_weight(self, site: str, value: Tensor, message: Any) -> None:
        """Make the parameters of one weight site, its mean starting at ``value``."""

    def posteriors(self) -> dict[str, WeightPosterior]:
        """The distribution of every weight site."""
        return {site: self.posterior(site) for site in self.weight_sites}

    def log_alpha(self, site: str) -> Tensor:
        """Natural log of the noise ratio at ``site``, in the shape the family stores or derives it.

        Raises:
            ValueError: not a weight site of this guide.
        """
        if site not in self.weight_sites:
            raise ValueError(f"log_alpha: expected one of the weight sites {list(self.weight_sites)}, got {site!r}")
        return self.posterior(site).log_alpha

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; returns a dict from site name to value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = dict(self.others(*args, **kwargs)) if self.others is not None else {}
        for site in self._weight_sites:
            message = self.prototype_trace.nodes[site]
            posterior = self.posterior(site)
            with ExitStack() as stack:
                for frame in message["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                result[site] = pyro.sample(site, posterior.to_event(message["fn"].event_dim - posterior.event_dim))
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The posterior mean of every weight, and the median of every other site."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        others = {} if self.others is None else self.others.median(*args, **kwargs)
        return {**others, **{site: posterior.mean.detach() for site, posterior in self.posteriors().items()}}

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        latent = dict(self.prototype_trace.iter_stochastic_nodes())
        if self._where is None:
            weights = tuple(name for name, message in latent.items() if _is_weight(message))
        else:
            weights = tuple(name for name in latent if self._where(name))
        if not weights:
            reason = (
                "is a weight (of a BayesianModule, or under ImproperLogUniform)"
                if self._where is None
                else "matches where"
            )
            raise ValueError(
                f"{type(self).__name__}: expected a latent site that {reason}, got the sites {list(latent)}; name the "
                "weights with where="
            )
        self._weight_sites = weights
        for site in weights:
            self._init_weight(site, latent[site]["value"].detach(), latent[site])
        rest = [name for name in latent if name not in weights] if self._where is None else []
        self.others = AutoNormal(poutine.block(self.model, expose=rest)) if rest else None

    def _check_prototype(self, prototype: Any) -> None:
        """Called by the part for the other sites; it sees a subset of this guide's own prototype."""

    def _store(self, kind: str, site: str, value: Tensor, learnable: bool = True) -> None:
        """Keep ``value`` as the parameter (or buffer) ``self.<kind>.<site>``."""
        if kind not in self.__dict__.get("_modules", {}):
            setattr(self, kind, PyroModule())
        deep_setattr(getattr(self, kind), site, nn.Parameter(value) if learnable else value)

    def _read(self, kind: str, site: str) -> Tensor:
        return operator.attrgetter(site)(getattr(self, kind))


def _is_weight(message: Any) -> bool:
    return "net_parameter" in message["infer"] or isinstance(base_distribution(message["fn"]), ImproperLogUniform)
