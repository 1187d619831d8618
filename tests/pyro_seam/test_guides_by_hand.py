"""What a guide by hand may have beside its sites, masks of one side, and states of a layer of two names."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import nn

import pyro_vd as vd

Y = torch.tensor([0.5, -1.0, 2.0])


def model(y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)


def guide(y, more=lambda loc: None):
    loc = pyro.param("loc", torch.ones(3))
    more(loc)
    pyro.sample("w", dist.Normal(loc, 0.5).to_event(1))


def test_a_deterministic_site_of_a_guide_changes_nothing():
    with_site = lambda y: guide(y, lambda loc: pyro.deterministic("twice", 2 * loc))  # noqa: E731
    elbo, losses = vd.TraceVD_ELBO(), []
    for one in (guide, with_site):
        pyro.set_rng_seed(0)
        losses.append(elbo.terms(model, one, Y))
    assert losses[0].loss == losses[1].loss and list(losses[1].kl) == ["w"]
    SVI(model, with_site, pyro.optim.SGD({"lr": 0.1}), elbo).step(Y)


def test_a_factor_of_a_guide_counts():
    term = torch.tensor(0.25)
    with_factor = lambda y: guide(y, lambda loc: pyro.factor("f", term, has_rsample=True))  # noqa: E731
    assert vd.TraceVD_ELBO().terms(model, with_factor, Y).kl["f"] == term


@pytest.mark.parametrize("plain", [True, False])
def test_a_mask_of_the_model_alone_masks_the_prior_of_a_point(plain):
    """Trace_ELBO gives each site's log density its own mask."""
    mask = torch.tensor([True, False, True])

    def masked(y):
        with pyro.plate("n", 3), poutine.mask(mask=mask):
            w = pyro.sample("w", dist.Normal(0.3, 2.0))
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    def point(y):
        with pyro.plate("n", 3):
            loc = pyro.param("loc", torch.tensor([1.0, 2.0, 3.0]))
            pyro.sample("w", dist.Delta(loc, log_density=torch.full((3,), 0.1)))

    pyro.set_rng_seed(0)
    own = AutoDelta(masked) if plain else point
    loss = Trace_ELBO().loss(masked, own, Y)
    assert vd.TraceVD_ELBO().loss(masked, own, Y) == pytest.approx(loss, abs=1e-6)


def test_a_masked_layer_of_two_names_takes_its_own_state():
    """The mask of an attention holds infinity under both names."""
    layer = nn.Linear(3, 3)
    layer.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    net = nn.ModuleDict({"a": layer, "b": layer})
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    bnn.load_state_dict(bnn.state_dict())
    state = bnn.state_dict()
    state[next(name for name in state if name.endswith("b.mask"))] = torch.full((3, 3), torch.nan)
    with pytest.raises(ValueError, match="b.mask': expected finite values, got 6 NaN"):
        bnn.load_state_dict(state)
