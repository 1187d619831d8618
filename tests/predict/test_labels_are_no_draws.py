"""posterior_predictive of a model that is given its labels: they are not its predictions. And no examples in pieces."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd

X = torch.linspace(-1.0, 1.0, 5)


def model(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    if y is not None or len(x) != 5:
        pyro.factor("penalty", -slope)
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", slope * x)
        return pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def guide(x, y=None):
    pyro.sample("slope", dist.Normal(2.0, 0.1))


def test_given_labels_are_refused_or_returned_by_name():
    with pytest.raises(ValueError, match=r"got one that observes \['penalty', 'y'\].*leave y out"):
        vd.posterior_predictive(model, guide, X, X, num_samples=2)
    found = vd.posterior_predictive(model, guide, X, X, num_samples=2, return_sites=["y", "mean"])
    assert torch.equal(found["y"], X.expand(2, 5)) and set(found) == {"y", "mean"}


@pytest.mark.parametrize("mode", ["weights", "local", "mean"])
def test_without_labels_all_but_the_observed_sites_are_returned(mode):
    found = vd.posterior_predictive(model, guide, X, num_samples=3, mode=mode)
    assert set(found) == {"y", "mean"} and not torch.equal(found["y"][0], found["mean"][0])
    assert set(vd.posterior_predictive(model, guide, X[:2], num_samples=3, mode=mode)) == {"y", "mean"}


def test_of_two_sites_that_which_is_not_given_is_predicted():
    def both(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
            pyro.sample("z", dist.Normal(-slope * x, 0.1))

    assert set(vd.posterior_predictive(both, guide, X, X, num_samples=2)) == {"z"}
    assert set(vd.posterior_predictive(both, guide, X, num_samples=2)) == {"y", "z"}


@pytest.mark.parametrize("batch_size", [None, 4])
def test_no_examples(batch_size):
    def of_an_event(x):
        return pyro.sample("y", dist.Normal(pyro.sample("slope", dist.Normal(0.0, 1.0)) * x, 0.1).to_event(1))

    drawn = vd.posterior_predictive(of_an_event, guide, X[:0], num_samples=2, batch_size=batch_size)
    assert drawn["y"].shape == (2, 0)
