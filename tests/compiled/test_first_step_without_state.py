"""Plain SGD has no state: its first step is compiled as those after it, and resumes bit for bit from its optimizer."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 4)


@pytest.mark.parametrize("loaded", [False, True])
def test_the_first_step_is_compiled(loaded):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(8, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide, optim = AutoSparseVD(model), functools.partial(torch.optim.SGD, lr=0.1)
    guide(X, Y)
    svi = vd.CompiledSVI(model, guide, optim, vd.TraceVD_ELBO(), strict=True)
    if loaded:
        svi.optimizer.load_state_dict(svi.optimizer.state_dict())
    svi.step(X, Y)
    assert len(svi._programs) == 1
    svi.step(X, Y)
    assert len(svi._programs) == 1
