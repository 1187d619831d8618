"""CompiledSVI where there is nothing to train: the loss of SVI and one warning, or an error that says so."""

from __future__ import annotations

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import pyro_vd as vd

FROZEN = torch.nn.Linear(1, 1).requires_grad_(False)
LEAF = torch.tensor(0.5, requires_grad=True)  # known to nobody: of no module, and not in Pyro's store
LOCS = {"a number": lambda: torch.tensor(0.5), "a frozen module": lambda: FROZEN.bias[0], "a leaf": lambda: LEAF}
ELBOS = {"ours": vd.TraceVD_ELBO, "sampled": Trace_ELBO, "mean field": TraceMeanField_ELBO}


def programs(loc):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    return model, lambda: pyro.sample("x", dist.Normal(LOCS[loc](), 1.0))


def losses(svi, number=4):
    pyro.set_rng_seed(1)
    return [float(svi.step()) for _ in range(number)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("loc", LOCS)
def test_the_losses_are_those_of_svi(loc, elbo, accumulate):
    model, guide = programs(loc)
    optim = pyro.optim.Adam({"lr": 0.1})
    expected = losses(SVI(model, guide, optim, ELBOS[elbo]()))
    svi = vd.CompiledSVI(model, guide, optim, ELBOS[elbo](), accumulate=accumulate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert losses(svi) == pytest.approx(expected)
    assert [("no parameter to train" in str(warning.message)) for warning in caught] == [True]


@pytest.mark.parametrize("loc", LOCS)
def test_an_optimizer_over_all_of_them_says_that_there_are_none(loc):
    svi = vd.CompiledSVI(*programs(loc), functools.partial(torch.optim.Adam, lr=0.1), vd.TraceVD_ELBO())
    with pytest.raises(ValueError, match="optim: expected parameters to train, got a model and a guide without one"):
        svi.step()
    assert svi.evaluate_loss().shape == ()
