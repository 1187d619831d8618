"""What every guide of random weights shares: which sites it covers, where it starts, how it samples."""

from __future__ import annotations

import fnmatch
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.autoguide.guides import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vd._pyro import adopt_stored_value
from pyro_vd.common.guide_options import check_parts
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
    return init_to_median(site)  # type: ignore[return-value]


class WeightGuide(AutoGuide):
    """Abstract: a mean-field automatic guide with a :class:`WeightPosterior` at every weight site.

    Weight sites are those of a :class:`pyro_vd.BayesianModule`, those with the improper log-uniform prior, and those
    that ``where`` names. Without ``where``, every other latent site (a noise scale, say) gets Pyro's
    ``AutoNormal``, whose KL is estimated from its draw. With ``where``, only the sites it matches are
    covered, and several guides are combined by :func:`mixed_guide`. As with any Pyro modules, two guides of one
    class share their values in Pyro's parameter store: ``pyro.clear_param_store()`` starts afresh.

    Args:
        model: a Pyro model.
        where: site name or pattern (``"net.0.*"``), several, or a callable ``site_name -> bool``.
        init_loc_fn: where the mean of each site starts, as in Pyro's automatic guides.
        create_plates: as in Pyro's automatic guides.

    Raises:
        ValueError: ``where`` matches no latent site of the model; a site this family cannot cover.
    """

    prototype_trace: Any  # of the model, from the first call on
    unit_dim: Any = None  # dimension where the units lie, in families whose noise is shared by units
    # quantity -> why it cannot be trained
    never_learnable: Mapping[str, str] = {}

    def __init__(
        self,
        model: Callable,
        *,
        where: Where = None,
        init_loc_fn: Callable[[Any], Tensor] = init_to_net_value,
        create_plates: Callable | None = None,
    ):
        self._where = None if where is None else site_matcher(where)
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)

    @property
    def weight_sites(self) -> tuple[str, ...]:
        """Names of the sites that are random weights, in model order.

        Raises:
            ValueError: before the first call, when the model has not been seen.
        """
        if self.prototype_trace is None:
            raise ValueError(
                f"{type(self).__name__}: expected a guide that has seen its model once, got a new one; call "
                "guide(*args) with the arguments of the model first"
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
        """Natural log of the noise ratio at ``site``, of a shape that broadcasts with the weight.

        One value per weight, per unit (size 1 along the other axes) or per layer, as the family has it.

        Raises:
            ValueError: not a weight site of this guide.
        """
        return self.posterior(self._known(site)).log_alpha

    def dropout_rate(self, site: str) -> Tensor:
        """Probability of dropping with the noise ratio of ``site``, ``alpha / (1 + alpha)``; shape as ``log_alpha``."""
        return torch.sigmoid(self.log_alpha(site))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; returns a dict from site name to value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result: dict[str, Tensor] = {}
        for site in self._order:  # that of the model: other ELBOs take another for a sign of dependence
            if site in self._others:
                result.update(getattr(self, self._others[site])(*args, **kwargs))
                continue
            message: Any = self.prototype_trace.nodes[site]  # type: ignore[union-attr]
            posterior = self.posterior(site)
            with ExitStack() as stack:
                for frame in message["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                result[site] = pyro.sample(site, posterior.to_event(message["fn"].event_dim - posterior.event_dim))
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The posterior mean of every weight, and the median of every other site."""
        with poutine.block():
            self(*args, **kwargs)  # the parts for the other sites see the model at their first call
        medians = {site: posterior.mean.detach() for site, posterior in self.posteriors().items()}
        for part in self._others.values():
            medians.update(getattr(self, part).median(*args, **kwargs))
        return {site: medians[site] for site in self._order}

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
            self._check_site(site, latent[site])
            self._init_weight(site, latent[site]["value"].detach(), latent[site])
        rest = [name for name in latent if name not in weights] if self._where is None else []
        self._order = tuple(name for name in latent if name in weights or name in rest)
        self._others = {site: f"other_{i}" for i, site in enumerate(rest)}
        for site, part in self._others.items():
            setattr(self, part, AutoNormal(poutine.block(self.model, expose=[site])))

    def _check_site(self, site: str, message: Any) -> None:
        """Raise where this family cannot cover a site."""
        support = message["fn"].support
        while hasattr(support, "base_constraint"):  # of to_event, and of a mixture
            support = support.base_constraint
        if support is not constraints.real:
            raise ValueError(
                f"site {site!r}: expected a weight on the real line for {type(self).__name__}, got a prior "
                f"{type(base_distribution(message['fn'])).__name__} with support {support}; leave it out of where= "
                "and cover it with pyro.infer.autoguide.AutoNormal"
            )
        shape = tuple(message["fn"].event_shape)
        if self.unit_dim is not None and len(shape) < 2:
            raise ValueError(
                f"site {site!r}: expected a weight of two dimensions or more for {type(self).__name__}, whose noise is "
                f"shared by the units of a layer, got shape {shape}; cover it with AutoSparseVD, AutoMeanField or "
                "AutoVariationalDropout, whose noise is per weight, or leave it out of where="
            )
        if self.unit_dim is not None and not -len(shape) <= self.unit_dim < len(shape):
            raise ValueError(
                f"site {site!r}: expected a weight with dimension {self.unit_dim} for its units, got shape {shape}; "
                f"give {type(self).__name__} another unit_dim"
            )

    def _check_prototype(self, prototype: Any) -> None:
        """Called by the part for the other sites; it sees a subset of this guide's own prototype."""

    def set_learnable(self, quantity: str, learnable: bool = True, where: Where = None) -> None:
        """Make a stored quantity a parameter that is trained, or a buffer that is not.

        Make the optimizer anew afterwards.

        Args:
            quantity: name of a container of this guide, such as "locs", "log_sigma2s" or "log_alphas".
            learnable: parameter or buffer.
            where: sites, as in the constructor; all weight sites if None.

        Raises:
            ValueError: no such quantity; one without a gradient.
        """
        sites = [site for site in self.weight_sites if where is None or site_matcher(where)(site)]
        if quantity not in self._quantities:
            raise ValueError(f"set_learnable: expected one of {sorted(self._quantities)}, got {quantity!r}")
        if not sites:
            raise ValueError(f"set_learnable: expected where= to match one of {list(self.weight_sites)}, got {where!r}")
        if learnable and quantity in self.never_learnable:
            raise ValueError(f"set_learnable: {quantity!r} of {type(self).__name__} {self.never_learnable[quantity]}")
        for site in sites:
            self._store(quantity, site, self._read(quantity, site).detach().clone(), learnable)

    def _known(self, site: str) -> str:
        if site not in self.weight_sites:
            raise ValueError(f"site: expected one of the weight sites {list(self.weight_sites)}, got {site!r}")
        return site

    @property
    def _quantities(self) -> set[str]:
        return {name for name, child in self.named_children() if type(child) is PyroModule}

    def _store(self, quantity: str, site: str, value: Tensor, learnable: bool = True) -> None:
        """Keep ``value`` as the parameter or buffer ``self.<quantity>.<site>``."""
        if quantity not in self._quantities:
            setattr(self, quantity, PyroModule())
        owner = getattr(self, quantity)
        *path, name = site.split(".")
        for part in path:
            if not hasattr(owner, part):
                setattr(owner, part, PyroModule())
            owner = getattr(owner, part)
        if hasattr(owner, name):
            delattr(owner, name)  # from Pyro's store too, which would go on training it
        if learnable:
            setattr(owner, name, nn.Parameter(value))
        else:
            owner.register_buffer(name, value)

    def _read(self, quantity: str, site: str) -> Tensor:
        owner: Any = self
        *path, name = site.split(".")
        for part in (quantity, *path):
            owner = owner._modules[part]  # not by getattr, which is slow in a PyroModule
        value = getattr(owner, name)
        if isinstance(value, nn.Parameter):
            adopt_stored_value(f"{self._pyro_name}.{quantity}.{site}", value)
        return value


def mixed_guide(model: Callable, *guides: AutoGuide) -> AutoGuideList:
    """A guide of several families, each on the sites that its ``where`` names.

    Pyro's ``AutoGuideList`` with the guides appended. Made by hand, ``AutoGuideList(model)`` would draw the
    weights from their prior to see the model, which the improper log-uniform prior does not allow.

    Args:
        model: the Pyro model.
        *guides: guides with ``where=``, no two on the same site, or any other automatic guide of a part.

    Example:
        >>> import pyro_vd as vd
        >>> from pyro_vd.guides import AutoSparseVD, AutoVariationalDropout
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> first = AutoVariationalDropout(bnn, correlated=True, where="net.0.weight")
        >>> guide = mixed_guide(bnn, first, AutoSparseVD(bnn, where="net.1.weight"))
        >>> sorted(guide(torch.ones(1, 3)))
        ['net.0.weight', 'net.1.weight']
    """
    check_parts(guides)
    mixed = AutoGuideList(InitMessenger(init_to_net_value)(model))
    for guide in guides:
        mixed.append(guide)
    return mixed


def site_matcher(where: Any) -> Callable[[str], bool]:
    """``where`` as a predicate on site names."""
    if callable(where):
        return where  # type: ignore[return-value]
    patterns = [where] if isinstance(where, str) else list(where)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_weight(message: Any) -> bool:
    return "net_parameter" in message["infer"] or isinstance(base_distribution(message["fn"]), ImproperLogUniform)
