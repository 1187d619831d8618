"""mixed_guide beside Pyro's own automatic guides, under the improper prior, and in an order of its own."""

from __future__ import annotations

import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD, mixed_guide

X, Y = torch.ones(4, 3), torch.zeros(4, 2)


def program():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y=None):
        mean, noise = bnn(x), pyro.sample("noise", dist.HalfNormal(1.0))
        with vd.data_plate(4, 4):
            return pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)

    return model


def trained(model, guide):
    """The number of sites that the guide covers, after a step without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.isfinite(
            torch.tensor(SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO()).step(X, Y))
        )
    return len(guide(X, Y))


def test_the_cure_in_the_error_of_a_noise_site_works():
    model = program()
    with pytest.raises(ValueError, match="site 'noise': expected a weight on the real line for AutoMeanField") as error:
        AutoMeanField(model, where=["net.*", "noise"])(X, Y)
    cure = re.search(r"write (mixed_guide\(.*\)), with", str(error.value))[1].replace("where=...", "where='net.*'")
    names = {"mixed_guide": mixed_guide, "model": model, "pyro": pyro}
    guide = eval(cure, {**names, "AutoMeanField": AutoMeanField, "AutoNormal": AutoNormal})
    assert trained(model, guide) == 3


@pytest.mark.parametrize("other", [AutoNormal, AutoDelta])
def test_the_cure_in_the_error_of_the_improper_prior_works(other):
    model = program()
    with pytest.raises(ValueError, match=r"goes beside it in pyro_vd.guides.mixed_guide\(model, ...\)"):
        other(model)(X, Y)
    first = AutoSparseVD(model, where="net.0.weight")
    guide = mixed_guide(model, first, other(poutine.block(model, hide=["net.0.weight"])))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "site 'net.2.weight': expected a distribution that")
        assert SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO()).step(X, Y) > 0
    assert set(guide(X, Y)) == {"net.0.weight", "net.2.weight", "noise"}
    # Both start at the net's own values.
    assert torch.allclose(guide.median(X, Y)["net.2.weight"], guide[1].median()["net.2.weight"])


def test_the_order_of_parts_that_depend_on_no_other_needs_no_warning():
    model = program()
    last, first = AutoSparseVD(model, where="net.2.weight"), AutoSparseVD(model, where="net.0.weight")
    noise = AutoNormal(poutine.block(model, expose=["noise"]))
    assert trained(model, mixed_guide(model, noise, last, first)) == 3


def test_a_guide_by_hand_in_another_order_is_still_warned_of():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    def guide():
        b = pyro.sample("b", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
        pyro.sample("a", dist.Normal(b, 1.0))

    with pytest.warns(UserWarning, match="mean field restriction"):
        vd.TraceVD_ELBO().loss(model, guide)
