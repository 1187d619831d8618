"""Two BayesianModules whose names differ and whose sites are the same: an error that advises another name."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD, mixed_guide

X = torch.ones(4, 3)


def model_of(*names):
    nets = [nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3)]
    modules = [vd.BayesianModule(net, dist.Normal(0.0, 1.0), name=name) for net, name in zip(nets, names, strict=True)]

    def model(x, y=None):
        for module in modules:
            x = module(x)
        with vd.data_plate(4, len(x)):
            pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("make", [AutoMeanField, AutoSparseVD, lambda model: mixed_guide(model, AutoMeanField(model))])
def test_a_name_that_is_the_other_with_a_layer_behind_it(make):
    with pytest.raises(
        ValueError, match="site 'a.0.weight': expected .* in the BayesianModules 'a' and 'a.0'; .*name="
    ):
        make(model_of("a", "a.0"))
    assert set(AutoMeanField(model_of("a", "b")).weight_sites) == {"a.0.weight", "b.weight"}
