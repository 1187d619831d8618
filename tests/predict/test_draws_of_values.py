"""posterior_predictive side by side: every draw has noise of its own, plates keep their examples, sites are in all."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from helpers.oracles import assert_mean_close, assert_variance_close
from pyro_vd.predict import blocks

FAMILIES = {
    "normal": dist.Normal(torch.ones(3), 2.0),
    "laplace": dist.Laplace(torch.ones(3), 2.0),
    "gamma": dist.Gamma(torch.full((3,), 2.0), 1.0),
    "exponential": dist.Exponential(torch.full((3,), 2.0)),
    "lognormal": dist.LogNormal(torch.zeros(3), 0.3),
    "poisson": dist.Poisson(torch.full((3,), 4.0)),
    "bernoulli": dist.Bernoulli(torch.full((3,), 0.3)),
    "student": dist.StudentT(torch.full((3,), 20.0), 1.0, 2.0),
    "multivariate": dist.MultivariateNormal(torch.ones(3), torch.eye(3) + 0.5),
    "dirichlet": dist.Dirichlet(torch.ones(3)),
}


def guide(*args):
    pyro.sample("w", vd.DropoutNormal(torch.zeros(2), log_sigma2=0.0).to_event(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_sites_that_no_weight_touches_are_drawn_for_every_draw(name):
    """Their moments over 800 draws, and those of a later use of them, within standard errors."""
    family = FAMILIES[name]

    def model():
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z = pyro.sample("z", family.expand(family.batch_shape))
        pyro.deterministic("twice", 2 * z)

    drawn = vd.posterior_predictive(model, guide, num_samples=800)
    assert torch.equal(drawn["twice"], 2 * drawn["z"])
    assert_mean_close(drawn["z"].double(), family.mean)
    assert_variance_close(drawn["z"].double(), family.variance)
    half = drawn["z"].double() - family.mean
    assert_mean_close(half[:400] * half[400:], torch.zeros_like(family.mean))  # draws do not know of each other


@pytest.mark.parametrize("predict", [vd.posterior_predictive, vd.predictive_distribution])
def test_a_plate_keeps_the_examples_of_the_guide(predict):
    """The model sees the latent values of a subsample beside the examples that they were drawn for."""
    positions = torch.arange(50.0)

    def model():
        with pyro.plate("data", 50, subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z - positions[index], 1e-3))

    def of_plate():
        with pyro.plate("data", 50, subsample_size=5) as index:
            pyro.sample("z", dist.Normal(positions[index], 1e-3))

    y = predict(model, of_plate, num_samples=7)["y"]
    values = y if isinstance(y, torch.Tensor) else y.draws.loc
    assert values.shape == (7, 5) and (values.abs() < 0.1).all()


def test_a_site_in_some_draws_alone_is_named():
    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if pyro.sample("coin", dist.Normal(w[0], 0.1)) > 0:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'sometimes': expected the same sites in every draw and piece, got it"):
        vd.posterior_predictive(model, guide, num_samples=40)


def test_a_mean_network_runs_once_for_all_draws(monkeypatch):
    """In mode "mean" no draw of the block has weights of its own; the noise of the site differs."""
    seen = []
    original = blocks.Blocks._values_of_block
    monkeypatch.setattr(blocks.Blocks, "_values_of_block", lambda self, i: seen.append(original(self, i)) or seen[-1])

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w, 1.0).to_event(1))

    y = vd.posterior_predictive(model, guide, num_samples=200, mode="mean")["y"]
    assert [values["w"].shape for values in seen] == [(2,)]
    assert_mean_close(y.double(), torch.zeros(2, dtype=torch.float64))
    assert len(y.unique(dim=0)) == 200


def test_a_site_of_the_guide_that_it_computes_is_its_own():
    def computes(*args):
        pyro.deterministic("scaled", 2 * pyro.sample("w", dist.Normal(0.0, 1.0)))

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.deterministic("scaled", 2 * w)
        pyro.sample("y", dist.Normal(w, 1.0))

    assert set(vd.posterior_predictive(model, computes, num_samples=5)) == {"y"}
