"""``pyro.settings`` with ``module_local_params``: parameters of modules are not in Pyro's store."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X = torch.linspace(-1, 1, 5)


class Model(PyroModule):
    """As in Pyro's own test of its loss module."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)
        self.z = PyroSample(lambda self: dist.Normal(self.loc, self.scale).to_event(1))

    def forward(self, x):
        loc, log_scale = self.z.unbind(-1)
        with pyro.plate("data"):
            pyro.sample("obs", dist.Normal(loc, log_scale.exp()), obs=x)


class NetModel(PyroModule):
    def __init__(self):
        super().__init__()
        self.bnn = vd.BayesianModule(nn.Linear(1, 1), dist.Normal(0.0, 1.0))

    def forward(self, x):
        mean = self.bnn(x.unsqueeze(-1)).squeeze(-1)
        with vd.data_plate(5, len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("make, family", [(Model, AutoNormal), (NetModel, AutoMeanField)])
def test_a_loss_module_trains(make, family, local):
    with pyro.settings.context(module_local_params=local):
        model = make()
        guide = family(model)
        guide(X)
        loss = vd.TraceVD_ELBO("shared")(model, guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
        before = [p.detach().clone() for p in guide.parameters()]
        for _ in range(2):
            optimizer.zero_grad()
            loss(X).backward()
            optimizer.step()
        assert not any(torch.equal(p, old) for p, old in zip(guide.parameters(), before, strict=True))
        assert vd.gradient_variance(model, guide, loss.elbo, X, num_draws=2) is not None


@pytest.mark.slow
@pytest.mark.parametrize("make, family", [(Model, AutoNormal), (NetModel, AutoMeanField)])
def test_compiled_svi_trains(make, family):
    with pyro.settings.context(module_local_params=True):
        model = make()
        guide = family(model)
        guide(X)
        adam = functools.partial(torch.optim.Adam, lr=0.1)
        svi = vd.CompiledSVI(model, guide, adam, vd.TraceVD_ELBO("shared"))
        before = [p.detach().clone() for p in guide.parameters()]
        svi.step(X)
        assert not any(torch.equal(p, old) for p, old in zip(guide.parameters(), before, strict=True))
