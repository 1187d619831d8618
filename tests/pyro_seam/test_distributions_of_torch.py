"""A guide may have a distribution of torch under Pyro's Independent: it is described like any other. Exact."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd


def test_a_normal_of_torch_is_named_in_the_warning():
    bnn = vd.BayesianModule(torch.nn.Linear(3, 1), dist.Normal(0.0, 1.0))

    def model(x):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(4, 4):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.zeros(4))

    def guide(x):
        pyro.sample("net.weight", dist.Independent(torch.distributions.Normal(torch.zeros(1, 3), 1.0), 2))

    pyro.clear_param_store()
    with pytest.warns(UserWarning, match=r"got Normal.to_event\(2\): the weight is drawn once a step"):
        loss = vd.TraceVD_ELBO().differentiable_loss(model, guide, torch.ones(4, 3))
    assert torch.isfinite(loss)
