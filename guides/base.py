"""The base of every guide of random weights: which sites it covers, where it starts, how it samples."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import constraints

from pyro_vd.common.guide_options import check_site, sites_to_set
from pyro_vd.fixed import Fixed
from pyro_vd.guides import parameters
from pyro_vd.guides.sites import SiteGuide, Where
from pyro_vd.posteriors import WeightPosterior
from pyro_vd.posteriors.fixed import with_fixed
from pyro_vd.posteriors.sites import base_distribution
from pyro_vd.priors import ImproperLogUniform


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


class WeightGuide(SiteGuide):
    """Abstract: a mean-field automatic guide with a :class:`WeightPosterior` at every weight site.

    Weight sites are those of a :class:`pyro_vd.BayesianModule`, those with the improper log-uniform prior, and those
    that ``where`` names. The parameters of the first are made at once, for every BayesianModule that the model refers
    to; the others when the model first runs, or when a state dict that has them is loaded.

    Without ``where``, every other latent site (a noise scale, say) gets a normal distribution on the real line, as
    Pyro's ``AutoNormal`` does, whose KL is estimated from its draw. With ``where``, only the sites it matches are
    covered, and several guides are combined by :func:`mixed_guide`. A site is left to the model where no observation
    depends on it (a label that a call is without), and where it is inside a plate with subsampling, such as
    :func:`pyro_vd.data_plate`.

    Args:
        model: a Pyro model.
        where: site name or pattern (``"net.0.*"``), several, or a callable ``site_name -> bool``.
        init_loc_fn: where the mean of each site starts, as in Pyro's automatic guides.
        create_plates: as in Pyro's automatic guides.

    Raises:
        ValueError: ``where`` matches no latent site of the model; a site this family cannot cover; two nets of the
            model with one name.
    """

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
        super().__init__(model, where, init_loc_fn, create_plates)

    def posterior(self, site: str) -> WeightPosterior:
        """The distribution of the weight at ``site``, without ``to_event``, from the current parameters.

        Elements that a layer keeps fixed, padding rows and masked ones, are constants of it.

        Raises:
            ValueError: not a weight site of this guide.
        """
        if site not in self._prototypes or site in self._others:
            self._known(site)  # raises
        return self._posterior(site)

    def posteriors(self) -> dict[str, WeightPosterior]:
        """The distribution of every weight site, as :meth:`posterior` has it."""
        return {site: self._posterior(site) for site in self.weight_sites}

    @abstractmethod
    def _free_posterior(self, site: str) -> WeightPosterior:
        """The distribution of the weight at ``site`` as this family has it, whatever the layers of a net keep fixed."""
        return self.posterior(site)  # a family that has a method of this name alone

    def _posterior(self, site: str) -> WeightPosterior:
        fixed = self._prototypes[site].fixed
        return self._free_posterior(site) if fixed is None else with_fixed(self._free_posterior(site), fixed())

    def _fixed(self, site: str) -> Fixed | None:
        """What the layers keep fixed of the weight at ``site``, now."""
        fixed = self._prototypes[site].fixed
        return None if fixed is None else fixed()

    def log_alpha(self, site: str) -> Tensor:
        """Natural log of the noise ratio at ``site``, of a shape that broadcasts with the weight.

        One value per weight, per unit (size 1 along the other axes) or per layer, as the family has it.

        Raises:
            ValueError: not a weight site of this guide.
        """
        return self._posterior(self._known(site)).log_alpha

    def dropout_rate(self, site: str) -> Tensor:
        """Probability of dropping with the noise ratio of ``site``, ``alpha / (1 + alpha)``; shape as ``log_alpha``."""
        return torch.sigmoid(self.log_alpha(site))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; returns a dict from site name to value."""
        self.see(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result: dict[str, Tensor] = {}
        for site, prototype in self._prototypes.items():  # another order looks like dependence
            posterior = None if site in self._others else self._posterior(site)
            with ExitStack() as stack:
                for frame in prototype.frames:
                    stack.enter_context(plates[frame.name])
                if posterior is None:
                    result[site] = getattr(self, self._others[site])(prototype)
                else:
                    q: Any = posterior.to_event(prototype.event_dim - posterior.event_dim)
                    infer: Any = {"is_mean_field": True}  # read by TraceVD_ELBO
                    result[site] = pyro.sample(site, q, infer=infer)
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The posterior mean of every weight, and the median of every other site."""
        self.see(*args, **kwargs)
        return {
            site: getattr(self, self._others[site]).median(prototype)
            if site in self._others
            else self._posterior(site).mean.detach()
            for site, prototype in self._prototypes.items()
        }

    def _check_site(self, site: str, message: Any) -> None:
        """Raise where this family cannot cover a site."""
        support = message["fn"].support
        while hasattr(support, "base_constraint"):  # of to_event, and of a mixture
            support = support.base_constraint
        if support is not constraints.real:
            raise ValueError(
                f"site {site!r}: expected a weight on the real line for {type(self).__name__}, got a prior "
                f"{type(base_distribution(message['fn'])).__name__} with support {support}; leave it out of where= "
                f"and write mixed_guide(model, {type(self).__name__}(model, where=...), "
                f"AutoNormal(pyro.poutine.block(model, expose=[{site!r}]))), with pyro.infer.autoguide.AutoNormal"
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

    def set_learnable(self, quantity: str, learnable: bool = True, where: Where = None) -> None:
        """Make a stored quantity a parameter that is trained, or a buffer that is not.

        Make a new optimizer afterwards.

        Args:
            quantity: name of a container of this guide, such as "locs", "log_sigma2s" or "log_alphas".
            learnable: parameter or buffer.
            where: sites, as in the constructor; all weight sites if None.

        Raises:
            ValueError: no such quantity; one without a gradient.
        """
        sites = sites_to_set(quantity, learnable, where, self.weight_sites, parameters.quantities(self))
        if learnable and quantity in self.never_learnable:
            raise ValueError(f"set_learnable: {quantity!r} of {type(self).__name__} {self.never_learnable[quantity]}")
        for site in sites:
            self._store(quantity, site, self._read(quantity, site).detach().clone(), learnable)

    def _known(self, site: str) -> str:
        return check_site(site, self.weight_sites)

    def _store(self, quantity: str, site: str, value: Tensor, learnable: bool = True) -> None:
        parameters.store(self, quantity, site, value, learnable)

    def _read(self, quantity: str, site: str) -> Tensor:
        if site not in self._prototypes:
            self._known(site)  # raises
        return parameters.read(self, quantity, site)
