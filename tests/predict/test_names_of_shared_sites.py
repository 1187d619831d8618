"""A misspelt name in shared_sites, or an unknown reuse, is an error in every mode of a prediction."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

BNN = vd.BayesianModule(torch.nn.Linear(3, 2), dist.Normal(0.0, 1.0))
X = torch.ones(5, 3)


def model(x, y=None):
    mean = BNN(x)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


CALLS = [(vd.posterior_predictive, mode) for mode in ("weights", "local", "mean")]
CALLS += [(vd.predictive_distribution, mode) for mode in ("weights", "local", "mean", "moments")]


@pytest.mark.parametrize(("call", "mode"), CALLS)
def test_names_and_choices_are_looked_at(call, mode):
    guide = AutoMeanField(model)
    assert call(model, guide, X, num_samples=2, mode=mode, shared_sites=["net.weight"]).keys() == {"y"}
    with pytest.raises(ValueError, match="shared_sites: .*net.wieght"):
        call(model, guide, X, num_samples=2, mode=mode, shared_sites=["net.wieght"])
    with pytest.raises(ValueError, match="reuse: expected one of"):
        call(model, guide, X, num_samples=2, mode=mode, reuse="eror")
