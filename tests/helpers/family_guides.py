"""A net of two layers under a guide of each noise family, and a few steps of its training."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

import pyro_vd as vd
from pyro_vd import guides

X, Y = torch.linspace(-2, 2, 48).sin().reshape(12, 4), torch.linspace(-1, 1, 24).cos().reshape(12, 2)
NORMAL_PRIOR = ("AutoMeanField", "AutoConcreteDropout", "AutoLowRank")
SITES = ("net.0.weight", "net.2.weight")
SHAPES = {"net.0.weight": (3, 4), "net.2.weight": (2, 3)}


def make(name, options=None, net=None):
    """A net of two layers under the prior of a family, its model, and its guide that has seen it."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)) if net is None else net
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0) if name in NORMAL_PRIOR else vd.ImproperLogUniform())

    def model(x, y=None):
        output = bnn(x)
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(output, 0.5).to_event(1), obs=y)

    return model, bnn, getattr(guides, name)(model, **(options or {}))


def steps(model, guide, number=3, optimizer="pyro"):
    """A few steps with an optimizer made now."""
    if optimizer == "pyro":
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO())
        for _ in range(number):
            svi.step(X, Y)
    else:
        module = vd.TraceVD_ELBO()(model, guide)
        module(X, Y)
        torch_optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(number):
            torch_optimizer.zero_grad()
            module(X, Y).backward()
            torch_optimizer.step()
