"""Every guide with its options, on a small net; shared by the tests of guides."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import nn

import pyro_vd as vd
from pyro_vd import guides

NAMES = sorted(name for name in vars(guides) if name.startswith("Auto"))
FAMILIES = [pytest.param(name, {}, id=name) for name in NAMES] + [
    pytest.param("AutoVariationalDropout", {"granularity": g}, id=f"AutoVariationalDropout-{g}")
    for g in ("unit", "layer")
]
NORMAL_PRIOR = {"AutoMeanField", "AutoConcreteDropout"}
SITES = ("net.0.weight", "net.2.weight")
X, Y = (torch.randn(6, n, generator=torch.Generator().manual_seed(n)) for n in (4, 2))


def prior_for(name):
    return dist.Normal(0.0, 1.0) if name in NORMAL_PRIOR else vd.ImproperLogUniform()


def make_model(prior, noise_site=None):
    """A net of two layers; ``noise_site`` puts a random noise scale "before" or "after" the net."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    bnn = vd.BayesianModule(net, prior)

    def model(x, y=None):
        scale = pyro.sample("noise", dist.Gamma(2.0, 2.0)) if noise_site == "before" else 0.5
        output = bnn(x)
        scale = pyro.sample("noise", dist.Gamma(2.0, 2.0)) if noise_site == "after" else scale
        with vd.data_plate(50, len(x)):
            return pyro.sample("y", dist.Normal(output, scale).to_event(1), obs=y)

    return model, net


def fresh_guide(name, options=None, noise_site=None):
    """A guide that has seen no data, its model and its net."""
    model, net = make_model(prior_for(name), noise_site)
    return model, net, getattr(guides, name)(model, **(options or {}))


def make_guide(name, options=None, noise_site=None):
    model, net, guide = fresh_guide(name, options, noise_site)
    guide(X, Y)
    return model, net, guide


def seeded(seed, function, *args):
    pyro.set_rng_seed(seed)
    return function(*args)


def latent_sites(fn, *args):
    return [name for name, _ in prune_subsample_sites(poutine.trace(fn).get_trace(*args)).iter_stochastic_nodes()]


def assert_same_draws(first, second):
    one, other = seeded(1, first, X), seeded(1, second, X)
    assert list(one) == list(other) and all(torch.equal(one[site], other[site]) for site in one)


def two_parts(model):
    return guides.mixed_guide(
        model, guides.AutoSparseVD(model, where="net.0.*"), guides.AutoVariationalDropout(model, where="net.2.*")
    )
