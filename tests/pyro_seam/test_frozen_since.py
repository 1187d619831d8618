"""A weight that is frozen after BayesianModule has chosen it: a warning, once, that it is trained all the same."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X, Y = torch.ones(4, 3), torch.zeros(4, 2)


def program():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean = bnn(x)
        with vd.data_plate(4, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    return net, model, AutoMeanField(model)


@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_a_weight_that_is_trained_all_the_same_is_named_once(estimator):
    net, model, guide = program()
    net[0].requires_grad_(False)
    loss = vd.TraceVD_ELBO(estimator)(model, guide)
    with pytest.warns(UserWarning, match=r"site 'net.0.weight': .* frozen \(requires_grad=False\) after"):
        loss(X, Y)
    loss(X, Y)  # a second warning would be an error here


def test_no_warning_where_the_guide_is_frozen_too_or_nothing_is_trained():
    net, model, guide = program()
    net.requires_grad_(False)
    vd.posterior_predictive(model, guide, X, num_samples=2)
    for quantity in ("locs", "log_sigma2s"):
        guide.set_learnable(quantity, False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vd.TraceVD_ELBO().differentiable_loss(model, guide, X, Y)
    assert not caught
