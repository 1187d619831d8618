"""With batch_size: a value that is not along the examples is the same in every piece, or refused by name."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd

X = torch.linspace(-1.0, 1.0, 6)


def guide(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))


def latent(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    return torch.ones(())


def of_the_examples(x):
    return x.sum()


def in_a_later_piece(x):
    if x[0] > 0.0:
        pyro.sample("late", dist.Normal(0.0, 1.0))
    return torch.ones(())


def in_the_first_piece(x):
    if x[0] < 0.0:
        pyro.sample("late", dist.Normal(0.0, 1.0))
    return torch.ones(())


def with_a_plate(extra):
    def model(x):
        w, value = pyro.sample("w", dist.Normal(0.0, 1.0)), extra(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x * w, 1.0))
        return value * w

    return model


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize(
    "extra, sites, name",
    [
        (latent, (), "z"),
        (of_the_examples, "_RETURN", "_RETURN"),
        (in_a_later_piece, (), "late"),
        (in_the_first_piece, (), "late"),
    ],
)
def test_a_value_that_pieces_do_not_share_is_refused(extra, sites, name, draws):
    with pytest.raises(ValueError, match=f"'{name}'.*leave batch_size out"):
        vd.posterior_predictive(with_a_plate(extra), guide, X, num_samples=draws, batch_size=3, return_sites=sites)


@pytest.mark.parametrize("extra", [latent, in_a_later_piece, in_the_first_piece])
def test_a_value_that_pieces_share_is_returned_once(extra):
    found = vd.posterior_predictive(
        with_a_plate(extra), guide, X, num_samples=3, batch_size=3, return_sites=["_RETURN", "w", "y"]
    )
    assert torch.equal(found["_RETURN"], found["w"]) and found["y"].shape == (3, 6)


def test_likelihoods_of_pieces():
    def model(x):
        pyro.sample("total", dist.Normal(x.sum(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x * pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0))

    with pytest.raises(ValueError, match="'total'.*leave batch_size out"):
        vd.predictive_distribution(model, guide, X, num_samples=3, batch_size=3)
    assert vd.predictive_distribution(model, guide, X, num_samples=3, batch_size=3, sites="y")["y"].mean.shape == (6,)


@pytest.mark.parametrize("first", [True, False])
def test_another_site_in_the_second_draw_of_the_mean(first):
    runs = []

    def model(x):
        runs.append(None)
        if (len(runs) == 1) == first:
            pyro.sample("late", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x * pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0))

    with pytest.raises(ValueError, match="'late': expected the same sites in every draw"):
        vd.predictive_distribution(model, guide, X, num_samples=3, mode="mean")
