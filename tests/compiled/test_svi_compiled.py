"""CompiledSVI and compile_loss with the compiler itself: the steps of the eager programs, number for number."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

STEPS = 200
X, Y = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


def make():
    pyro.clear_param_store()
    torch.manual_seed(0)
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), vd.ImproperLogUniform())

    def model(x, y):
        logits = bnn(x)
        with vd.data_plate(60, len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = AutoSparseVD(model)
    guide(X, Y)
    return model, guide, vd.TraceVD_ELBO()


def parameters():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def trained(step, elbo):
    torch.manual_seed(1)
    for i in range(STEPS):
        elbo.kl_weight = i / STEPS
        batch = slice(i % 3 * 20, i % 3 * 20 + 20)
        step(X[batch], Y[batch])
    return parameters()


@pytest.fixture(scope="module")
def eager():
    model, guide, elbo = make()
    return trained(pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo).step, elbo)


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones(eager):
    model, guide, elbo = make()
    svi = vd.CompiledSVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-2), elbo, strict=True)
    counters["inductor"].clear()
    compiled = trained(svi.step, elbo)
    assert len(svi._programs) == 1
    assert "fxgraph_cache_bypass" not in counters["inductor"]  # the next process finds the program on disk
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_the_compiled_loss_trains_as_the_eager_one(eager):
    model, guide, elbo = make()
    loss = vd.compile_loss(elbo(model, guide), strict=True)
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=1e-2)

    def step(x, y):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    compiled = trained(step, elbo)
    assert len(loss._programs) == 1
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_bags_with_padding_are_compiled():
    """Inductor has no vectors for a sum by index into one place for each bag: their words are counted by row."""
    pyro.clear_param_store()
    net = nn.Sequential(nn.EmbeddingBag(20, 6, mode="mean", padding_idx=0), nn.Linear(6, 3))
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y):
        logits = bnn(x)
        with vd.data_plate(64, len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    svi = vd.CompiledSVI(model, AutoSparseVD(model), adam, vd.TraceVD_ELBO(), strict=True)
    x = torch.randint(20, (64, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        svi.step(x, torch.arange(64) % 3)
    assert not svi._programs.ended
