"""Noise within activation checkpointing, which no program repeats in its backward pass: eager, and why is said."""

from __future__ import annotations

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Sequential(nn.Dropout(dropout), nn.Linear(4, 2))

    def forward(self, x):
        return checkpoint(self.last, torch.tanh(self.first(x)), use_reentrant=False)


def steps(compiled, estimator, dropout=0.0):
    pyro.set_rng_seed(0)
    bnn = vd.BayesianModule(Net(dropout), dist.Normal(0.0, 1.0))

    def model(x):
        pyro.sample("y", dist.Normal(bnn(x), 1.0).to_event(2), obs=torch.zeros(4, 2))

    guide, x, elbo = AutoMeanField(model), torch.randn(4, 3), vd.TraceVD_ELBO(estimator)
    if compiled == "step":
        step = vd.CompiledSVI(model, guide, functools.partial(torch.optim.Adam, lr=0.01), elbo).step
    else:
        step = vd.compile_loss(elbo(model, guide))
    guide(x)  # sees its model
    for _ in range(2):
        state = torch.get_rng_state()
        expected = elbo.loss(model, guide, x)
        torch.set_rng_state(state)
        assert float(step(x).detach()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("compiled", "estimator", "dropout"),
    [("step", "local", 0.0), ("loss", "per_example", 0.0), ("loss", "shared", 0.5)],
)
def test_the_reason_names_checkpointing(compiled, estimator, dropout):
    with pytest.warns(UserWarning, match="torch.utils.checkpoint repeats a layer with noise.*call that layer without"):
        steps(compiled, estimator, dropout)


@pytest.mark.slow
def test_a_layer_without_noise_is_compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps("step", "shared")
