"""NaN that validation lets through is an error at every door of a step, which names the site and the tensor."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

NAN, X = math.nan, torch.ones(4, 3)
pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")  # of Pyro


@pytest.fixture(params=[True, False], ids=["validated", "not validated"], autouse=True)
def validation(request):
    with pyro.validation_enabled(request.param):
        yield


def normal(scale):
    return dist.Normal(0.0, scale, validate_args=False)


@pytest.mark.parametrize(
    "prior",
    [
        normal(NAN),
        {"weight": normal(NAN)},
        lambda name, parameter: normal(NAN),
        dist.StudentT(3.0, NAN, validate_args=False),
    ],
)
def test_a_prior_of_a_net(prior):
    with pytest.raises(ValueError, match="prior of 'weight': expected a prior without NaN, got .* holds 1 NaN of 1"):
        vd.BayesianModule(nn.Linear(3, 2), prior)


def program(scale=None, latent=1.0):
    learned = torch.ones(()) if scale is None else scale
    bnn = vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, learned, validate_args=False))

    def model(x, y):
        noise = pyro.sample("noise", dist.HalfNormal(latent, validate_args=False))
        mean = bnn(x)
        with vd.data_plate(4, len(x)):
            pyro.sample("y", dist.Normal(mean, noise, validate_args=False).to_event(1), obs=y)

    return model


def test_a_prior_of_a_noise_site():
    guide = AutoMeanField(program(latent=NAN))
    with pytest.raises(ValueError, match="site 'noise': expected a prior without NaN, got HalfNormal whose scale"):
        guide(X, torch.zeros(4, 2))


DOORS = {
    "step": lambda elbo, model, guide, *data: SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(*data),
    "loss": lambda elbo, model, guide, *data: elbo.loss(model, guide, *data),
    "module": lambda elbo, model, guide, *data: elbo(model, guide)(*data),
    "own loop": lambda elbo, model, guide, *data: elbo.differentiable_loss(model, guide, *data),
    "compiled": lambda elbo, model, guide, *data: vd.CompiledSVI(model, guide, pyro.optim.Adam({}), elbo).step(*data),
    "evaluated": lambda elbo, model, guide, *data: vd.CompiledSVI(
        model, guide, pyro.optim.Adam({}), elbo
    ).evaluate_loss(*data),
    "variance": lambda elbo, model, guide, *data: vd.gradient_variance(model, guide, elbo, *data, num_draws=2),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_every_door(door, value):
    scale, y = torch.ones(()), torch.zeros(4, 2)
    model = program(scale)
    guide = AutoMeanField(model)
    guide(X, y)
    before = [parameter.clone() for parameter in guide.parameters()]
    scale.fill_(value)  # a learned scale, say
    with pytest.raises(ValueError, match="site 'net.weight': expected a finite KL.*scale of the prior of site 'n"):
        DOORS[door](vd.TraceVD_ELBO(), model, guide, X, y)
    scale.fill_(1.0)
    y[0] = value
    with pytest.raises(ValueError, match="site 'y': expected a finite negative.*data argument 1 holds 2 NaN or inf"):
        DOORS[door](vd.TraceVD_ELBO(), model, guide, X, y)
    assert all(map(torch.equal, before, guide.parameters()))


def test_a_loss_without_values_is_not_looked_at():
    def loss(y):
        def model():
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

        return vd.TraceVD_ELBO().differentiable_loss(model, lambda: None)

    assert torch.func.grad(loss)(torch.tensor(2.0)) == 2.0
