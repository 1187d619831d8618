"""Small Pyro programs whose loss is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vd as vd

NOTHING = -60.0  # a log variance at which float64 draws are their mean, to 1e-12


def two_layer_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """3 -> 4 -> 2 with biases, fixed values."""
    generator = torch.Generator().manual_seed(7)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return net


def data(rows: int = 6, inputs: int = 3, outputs: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(rows, inputs, generator=generator).to(dtype), torch.randn(rows, outputs, generator=generator).to(
        dtype
    )


class Program(nn.Module):
    """A net with Gaussian noise of scale 1 as model, and a guide written by hand.

    Attributes:
        loc, log_sigma2: the guide's parameters of each site.
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Any = None,
        *,
        dataset_size: int = 30,
        log_sigma2: float = -2.0,
        posterior: Callable = vd.DropoutNormal,
        kl: str = "sigmoid",
        where: Any = None,
    ):
        super().__init__()
        self.bnn = vd.BayesianModule(net, vd.ImproperLogUniform() if prior is None else prior, where=where)
        self.dataset_size, self.posterior, self.kl = dataset_size, posterior, kl
        named = dict(net.named_parameters())
        values = {self.bnn.site(name): named[name].detach() for name in self.bnn.weight_names}
        self.loc = {site: nn.Parameter(value.clone()) for site, value in values.items()}
        self.log_sigma2 = {site: nn.Parameter(torch.full_like(value, log_sigma2)) for site, value in values.items()}
        self.of_guide = nn.ParameterList([*self.loc.values(), *self.log_sigma2.values()])

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mean = self.bnn(x)
        with vd.data_plate(self.dataset_size, len(x)):
            return pyro.sample("y", dist.Normal(mean, torch.ones((), dtype=mean.dtype)).to_event(1), obs=y)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        for site in self.loc:
            loc = pyro.param(f"loc.{site}", self.loc[site])
            log_sigma2 = pyro.param(f"log_sigma2.{site}", self.log_sigma2[site])
            pyro.sample(site, self.posterior(loc, log_sigma2=log_sigma2, kl=self.kl).to_event(loc.dim()))

    def kl_per_site(self) -> dict[str, Tensor]:
        """The KL of every site, from its formula."""
        return {
            site: vd.kl.kl_log_uniform(self.log_sigma2[site] - self.loc[site].square().log(), self.kl).sum()
            for site in self.loc
        }

    def kl_total(self) -> Tensor:
        """The sum of :meth:`kl_per_site`."""
        return sum(self.kl_per_site().values(), torch.zeros(()))

    def mean_nll(self, x: Tensor, y: Tensor) -> Tensor:
        """Negative log likelihood of the batch at the means, not scaled."""
        values = {name: self.loc[self.bnn.site(name)] for name in self.bnn.weight_names}
        return normal_nll(torch.func.functional_call(self.bnn.net, values, (x,)), y).sum()


def normal_nll(mean: Tensor, y: Tensor, variance: Tensor | float = 0.0) -> Tensor:
    """E[-log N(y; z, 1)] for z ~ N(mean, variance), elementwise."""
    return 0.5 * math.log(2 * math.pi) + 0.5 * ((y - mean).square() + variance)


def run_locally(net: nn.Module, *args, where="*", log_sigma2: float = -2.0, handler=vd.lrt, **kwargs):
    """The output of a net whose chosen parameters are random, and the states of their weights by parameter name."""
    pyro.clear_param_store()
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0), where=where)
    parameters = dict(net.named_parameters())

    def guide(*args, **kwargs):
        for name in bnn.weight_names:
            loc = parameters[name]
            pyro.sample(bnn.site(name), vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(loc.dim()))

    trace = poutine.trace(handler(guide)).get_trace(*args, **kwargs)
    output = poutine.replay(bnn, trace)(*args, **kwargs)
    values = {name: trace.nodes[bnn.site(name)]["value"] for name in bnn.weight_names}
    return output, {name: value.state for name, value in values.items() if isinstance(value, vd.RandomWeight)}
