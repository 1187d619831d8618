"""One pass: parameters of a likelihood that are functions of the same Gaussian are drawn together."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from helpers.oracles import log_density_of_mixture

LOC, VARIANCE = torch.tensor([[0.3, -0.2]]), 0.7
PARAMETERS = {
    "slices": (lambda o: (o[:, 0], (-o[:, 0]).exp()), lambda a, b: (a, np.exp(-a))),
    "slices of a function": (lambda o: (o[:, 0], torch.exp(-o)[:, 0]), lambda a, b: (a, np.exp(-a))),
    "a scaled slice": (lambda o: ((2 * o)[:, 0], (1 - o[:, 0]).exp()), lambda a, b: (2 * a, np.exp(1 - a))),
    "reshaped": (lambda o: (o[:, :1].reshape(-1), (-o.T[0]).exp()), lambda a, b: (a, np.exp(-a))),
    "split": (lambda o: (o.chunk(2, -1)[0][:, 0], (-o.unbind(-1)[0]).exp()), lambda a, b: (a, np.exp(-a))),
    "a softplus": (
        lambda o: (torch.tanh(o[:, 0]), torch.nn.functional.softplus(o[:, 0]) + 0.1),
        lambda a, b: (np.tanh(a), np.log1p(np.exp(a)) + 0.1),
    ),
    "two elements": (lambda o: (o[:, 0], o[:, 1].exp()), lambda a, b: (a, np.exp(b))),
}


def guide(x):
    pyro.sample("w", vd.DropoutNormal(LOC, log_sigma2=math.log(VARIANCE)).to_event(2))


@pytest.mark.parametrize("of_weight", [False, True], ids=["of an activation", "of a weight"])
@pytest.mark.parametrize("parameters, of", PARAMETERS.values(), ids=PARAMETERS)
def test_functions_of_one_gaussian_share_its_noise(parameters, of, of_weight):
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
        o = w if of_weight else x @ w
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(*parameters(o)))

    pyro.set_rng_seed(0)
    y = vd.predictive_distribution(model, guide, torch.ones(1, 1), mode="moments", num_samples=20_000)["y"]
    for value in (0.0, 1.0):
        # The spread of the estimate over seeds is below 0.005.
        assert y.log_prob(torch.tensor([value])).item() == pytest.approx(
            log_density_of_mixture(of, value, LOC[0], VARIANCE), abs=0.03
        )


def test_sites_of_one_gaussian_share_its_noise():
    def model(x):
        o = x @ pyro.sample("w", dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(o[:, 0], 1.0))
            pyro.sample("z", dist.Normal(-2 * o[:, 0], 1.0))

    found = vd.predictive_distribution(model, guide, torch.ones(3, 1), mode="moments", num_samples=50)
    torch.testing.assert_close(found["z"].draws.mean, -2 * found["y"].draws.mean)
