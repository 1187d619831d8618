"""Draws of weights without the guide: where its posteriors are the same in every draw, and only there."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from helpers.oracles import assert_mean_close, assert_variance_close
from pyro_vd.guides import AutoBernoulliDropout, AutoGroupSparse, AutoLowRank, AutoSparseVD, AutoVariationalDropout
from pyro_vd.predict import posteriors

LOC = torch.tensor([[1.0, -2.0], [0.5, 0.0]])


def weight(name, loc=LOC):
    return pyro.sample(name, vd.DropoutNormal(loc, log_sigma2=-1.0).to_event(2))


def plain(x):
    weight("a")
    weight("b", 2 * LOC)


def chained(x):
    weight("b", weight("a"))


def catches(x):
    try:
        loc = LOC * weight("a").mean()
    except Exception:
        loc = LOC
    weight("b", loc)


def hierarchical(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    weight("a", LOC * scale)


def coin(x):
    weight("a", LOC * torch.rand(()))


def other_family(x):
    weight("a")
    pyro.sample("noise", dist.LogNormal(0.0, 1.0))


def in_a_plate(x):
    with pyro.plate("data", 3):
        weight("a")


@pytest.mark.parametrize("guide", [chained, catches, hierarchical, coin, other_family, in_a_plate])
def test_a_guide_whose_posteriors_change_is_run_for_every_draw(guide):
    assert posteriors.fixed_posteriors(guide, ((torch.ones(3),), {})) is None


def test_a_guide_whose_posteriors_stay():
    found = posteriors.fixed_posteriors(plain, ((torch.ones(3),), {}))
    assert found is not None and set(found) == {"a", "b"} and torch.equal(found["b"].loc, 2 * LOC)


@pytest.mark.parametrize(
    "family", [AutoSparseVD, AutoVariationalDropout, AutoBernoulliDropout, AutoLowRank, AutoGroupSparse]
)
def test_every_automatic_guide_is_known(family):
    bnn = vd.BayesianModule(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), vd.ImproperLogUniform())
    guide, x = family(bnn), torch.ones(1, 3)
    guide(x)
    found = posteriors.fixed_posteriors(guide, ((x,), {}))
    assert found is not None and set(found) == {"net.0.weight", "net.1.weight"}
    assert posteriors.WeightDraws(found["net.0.weight"]).draw(3).shape == (3, 4, 3)


@pytest.mark.parametrize("size", [2, 120])
def test_draws_have_the_moments_of_the_posterior(size, monkeypatch):
    """Of 4,000, within standard errors; a large weight is drawn on several threads, a small one is not."""
    loc = torch.linspace(-1, 1, size * size, dtype=torch.float64).reshape(size, size)
    posterior = vd.DropoutNormal(loc, log_sigma2=-1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    draws = posteriors.WeightDraws(posterior).draw(4000 if size == 2 else 200)
    assert draws.dtype == torch.float64
    assert_mean_close(draws, loc)
    assert_variance_close(draws[:, :2, :2], torch.full((2, 2), math.exp(-1), dtype=torch.float64))
    correlation = torch.corrcoef((draws[:8] - loc).reshape(8, -1))  # of draws with one another
    assert size == 2 or (correlation - torch.eye(8)).abs().max() < 5 / size


def test_a_seed_gives_the_same_draws_on_any_number_of_threads(monkeypatch):
    posterior = vd.DropoutNormal(torch.zeros(120, 120), log_sigma2=0.0)
    found = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        pyro.set_rng_seed(5)
        found.append(posteriors.WeightDraws(posterior).draw(6))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert len(found[0].flatten(1).unique(dim=0)) == 6
