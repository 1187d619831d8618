"""The latent sites of a model that are not weights: what Pyro's AutoNormal does, for one site."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.autoguide.utils import deep_setattr, helpful_support_errors
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import biject_to, constraints, register_kl, transform_to

from pyro_vd._pyro import adopt_stored_value
from pyro_vd.checks import describe
from pyro_vd.common.guide_options import moving_support
from pyro_vd.guides.coverage import Prototype, moves
from pyro_vd.priors import check_no_nan

_START_SCALE = 0.1  # of AutoNormal
_POSITIVE = dist.constraints.softplus_positive


class MappedDelta(dist.Delta):
    """A Delta whose KL has its ``log_density``, the Jacobian of a map, under Pyro's own ELBOs too.

    The KL rule of ``pyro.distributions.Delta`` leaves it out:
    https://github.com/pyro-ppl/pyro/blob/dev/pyro/distributions/kl.py
    """


@register_kl(MappedDelta, dist.Distribution)
def _kl_of_mapped(q: MappedDelta, p: Any) -> Tensor:
    return q.log_density - p.log_prob(q.v)


class Starts(InitMessenger):
    """Gives every latent site its start; one whose support has no map from the real line is drawn.

    No guide covers such a site, a vector of counts say: it is a label, which is not observed in this call.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            check_no_nan(f"site {msg['name']!r}", msg["fn"])
        try:
            super()._pyro_sample(msg)
        except (ValueError, NotImplementedError):
            if _has_map(transform_to, msg["fn"].support):
                raise


class NormalSite(PyroModule):
    """A normal distribution on the real line, brought to the support of a site.

    Its parameters have the names that ``pyro.infer.autoguide.AutoNormal`` gives them, and it samples as that does.

    Args:
        site: name of the site.
        loc: start of the mean, on the real line.
    """

    def __init__(self, site: str, loc: Tensor):
        super().__init__()
        self.site = site
        self.locs, self.scales = PyroModule(), PyroModule()
        deep_setattr(self.locs, site, PyroParam(loc, constraints.real))
        deep_setattr(self.scales, site, PyroParam(torch.full_like(loc, _START_SCALE), _POSITIVE))

    def forward(self, like: Prototype) -> Tensor:
        """Sample the site; ``like`` has its support and dimensions."""
        for quantity, constraint in (("locs", constraints.real), ("scales", _POSITIVE)):
            name = f"{quantity}.{self.site}"
            parameter: nn.Parameter = attrgetter(f"{name}_unconstrained")(self)
            adopt_stored_value(f"{self._pyro_name}.{name}", parameter, constraint)
        loc, scale = (attrgetter(self.site)(quantity) for quantity in (self.locs, self.scales))
        transform = biject_to(like.support)
        event_dim = like.event_dim + loc.dim() - len(transform.forward_shape(loc.shape))
        latent = pyro.sample(
            f"{self.site}_unconstrained", dist.Normal(loc, scale).to_event(event_dim), infer={"is_auxiliary": True}
        )
        value = transform(latent)
        density = transform.inv.log_abs_det_jacobian(value, latent)
        log_density: Any = sum_rightmost(density, density.dim() - value.dim() + like.event_dim)
        return pyro.sample(self.site, MappedDelta(value, log_density=log_density, event_dim=like.event_dim))

    @torch.no_grad()
    def median(self, like: Prototype) -> Tensor:
        """The value at the mean on the real line."""
        return biject_to(like.support)(attrgetter(f"{self.site}_unconstrained")(self.locs).detach().clone())


def start_of(message: Any) -> Tensor:
    """Where a site's mean on the real line starts: at its value in the run of a model."""
    fn = message["fn"]
    if not _has_map(biject_to, fn.support) and not fn.support.is_discrete:
        raise ValueError(
            f"site {message['name']!r}: expected a latent site whose support has a map from the real line, got a "
            f"{type(fn).__name__} with support {fn.support}; write it as sites that have one (of a mixture, its "
            "components and a choice of one that is summed over), or cover it by a guide by hand"
        )
    if moves(fn.support):
        raise ValueError(moving_support(message["name"], describe(fn), "another latent site or a parameter"))
    with helpful_support_errors(message):
        return biject_to(fn.support).inv(message["value"]).detach().clone()


def _has_map(registry: Any, support: Any) -> bool:
    try:
        registry(support)
    except NotImplementedError:
        return False
    return True
