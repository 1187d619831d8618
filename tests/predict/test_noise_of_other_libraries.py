"""Draws side by side, of models whose noise torch.vmap does not see; and values that pieces do not share."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd

X = torch.linspace(-1.0, 1.0, 6)
OWN = np.random.default_rng(0)


class FromNumPy(dist.TorchDistribution):
    """A Gaussian that draws from NumPy."""

    arg_constraints, support = {"loc": dist.constraints.real}, dist.constraints.real

    def __init__(self, loc, validate_args=None):
        self.loc = loc
        super().__init__(loc.shape, validate_args=validate_args)

    def sample(self, sample_shape=()):
        return self.loc + torch.as_tensor(OWN.normal(size=self.loc.shape), dtype=self.loc.dtype)

    def log_prob(self, value):
        return -0.5 * (value - self.loc) ** 2


SHIFTS = {
    "numpy": lambda: np.random.normal(),
    "random": lambda: random.gauss(0.0, 1.0),
    "generator of its own": lambda: OWN.normal(),
    "sample": lambda: pyro.sample("z", FromNumPy(torch.tensor(0.0))),
    "sample event": lambda: pyro.sample("z", FromNumPy(torch.zeros(6)).to_event(1)),
    "sample of a weight": lambda: pyro.sample("z", FromNumPy(pyro.sample("w", dist.Normal(0.0, 1.0)))),
}


def guide(x):
    pyro.sample("w", dist.Normal(0.0, 1e-4))


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_noise_of_another_library_is_anew_in_every_draw(shift):
    def model(x):
        extra = shift()
        w = pyro.sample("w", dist.Normal(0.0, 1.0)) if shift is not SHIFTS["sample of a weight"] else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x + w + extra, 1e-4))

    draws = vd.posterior_predictive(model, guide, X, num_samples=8)["y"]
    assert draws[:, 0].std() > 0.05 and (draws[1:, 0] - draws[:-1, 0]).abs().min() > 1e-3
    means = vd.predictive_distribution(model, guide, X, num_samples=8, sites="y")["y"].draws.mean
    assert (means[1:, 0] - means[:-1, 0]).abs().min() > 1e-3


@pytest.mark.parametrize("call", [vd.posterior_predictive, vd.predictive_distribution])
def test_a_guide_that_draws_from_numpy(call):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x + pyro.sample("w", dist.Normal(0.0, 1.0)), 1e-4))

    def from_numpy(x):
        pyro.sample("w", FromNumPy(torch.tensor(0.0)))

    found = call(model, from_numpy, X, num_samples=8)["y"]
    values = found if isinstance(found, torch.Tensor) else found.draws.mean
    assert (values[1:, 0] - values[:-1, 0]).abs().min() > 1e-3


@pytest.mark.parametrize("call", [vd.posterior_predictive, vd.predictive_distribution])
@pytest.mark.parametrize("latent", ["none", "a site of the model", "a delta"])
def test_noise_of_torch_still_runs_side_by_side(call, latent):
    runs = []

    def model(x):
        runs.append(None)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        if latent == "a site of the model":
            w = w + pyro.sample("z", dist.Normal(0.0, 1.0))
        if latent == "a delta":
            w = w + pyro.sample("z", dist.Delta(torch.tensor(1.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x + w, 1e-4))

    call(model, guide, X, num_samples=50)
    assert len(runs) < 8
