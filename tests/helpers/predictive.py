"""A small classifier, its guide and its net, for the tests of predictions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField


def classifier(net, dataset_size=10):
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(x, y=None):
        logits = pyro.deterministic("logits", bnn(x))
        with vd.data_plate(dataset_size, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model, AutoMeanField(model, init_log_sigma2=-1.0)


def small_net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
