"""Guides of plain normal weights: sampled as the estimator says, or one warning that they are not."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

X, Y = torch.ones(6, 4), torch.zeros(6, 2)
LOC, SCALE = torch.linspace(-1, 1, 8).reshape(2, 4), torch.linspace(0.5, 1.5, 8).reshape(2, 4)


def make(bayesian=True, where="weight"):
    """A model of one layer, and its outputs, collected."""
    outputs = []
    bnn = vd.BayesianModule(nn.Linear(4, 2), dist.Normal(0.0, 1.0), where=where)

    def model(x, y=None):
        weight = None if bayesian else pyro.sample("net.weight", dist.Normal(torch.zeros(2, 4), 1.0).to_event(2))
        mean = bnn(x) if bayesian else x @ weight.T
        outputs.append(mean.detach())
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    return model, outputs


def by_hand(x, y=None):
    loc = pyro.param("loc", LOC.clone())
    scale = pyro.param("scale", SCALE.clone(), constraint=dist.constraints.positive)
    pyro.sample("net.weight", dist.Normal(loc, scale).to_event(2))


def as_dropout(x, y=None):
    loc = pyro.param("loc", LOC.clone())
    scale = pyro.param("scale", SCALE.clone(), constraint=dist.constraints.positive)
    pyro.sample("net.weight", vd.DropoutNormal(loc, log_sigma2=2 * scale.log()).to_event(2))


@pytest.mark.parametrize("bayesian", [True, False])
@pytest.mark.parametrize("estimator", ["local", "per_example", "flipout"])
def test_a_normal_matrix_is_the_gaussian_weight_it_is(estimator, bayesian):
    """The same outputs, loss and gradients as DropoutNormal with the same noise; nothing is warned of."""
    model, outputs = make(bayesian)
    results = []
    for guide in (by_hand, as_dropout):
        pyro.set_rng_seed(2)
        terms = vd.TraceVD_ELBO(estimator).terms(model, guide, X, Y)
        gradients = torch.autograd.grad(terms.loss, list(pyro.get_param_store()._params.values())[:1])
        results.append((outputs[-1], terms.loss.detach(), terms.kl["net.weight"].detach(), gradients[0]))
    torch.testing.assert_close(*results)
    if estimator != "flipout":
        assert len(results[0][0].unique(dim=0)) == 6
    prior = dist.Normal(torch.zeros(2, 4), 1.0)
    expected = torch.distributions.kl_divergence(dist.Normal(LOC, SCALE), prior).sum()
    torch.testing.assert_close(results[0][2], expected)  # torch's own rule


def test_shared_sites_and_the_shared_estimator_draw_it_once():
    model, outputs = make()
    for elbo in (vd.TraceVD_ELBO("shared"), vd.TraceVD_ELBO("local", shared_sites=["net.weight"])):
        elbo.loss(model, by_hand, X, Y)
        assert len(outputs[-1].unique(dim=0)) == 1


@pytest.mark.parametrize("make_guide", [AutoNormal, AutoDiagonalNormal])
def test_a_weight_that_is_drawn_once_is_warned_of_once(make_guide):
    model, outputs = make()
    guide = make_guide(model)
    guide(X, Y)
    elbo = vd.TraceVD_ELBO(analytic_only=False)
    message = r"site 'net.weight': .*estimator='local' has a form for, got Delta.*once a step.*shared_sites=\['net.w"
    with pytest.warns(UserWarning, match=message) as caught:
        for _ in range(3):
            elbo.loss(model, guide, X, Y)
    assert len(caught) == 1 and len(outputs[-1].unique(dim=0)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vd.TraceVD_ELBO("shared", analytic_only=False).loss(model, guide, X, Y)
        vd.TraceVD_ELBO(shared_sites=["net.weight"], analytic_only=False).loss(model, guide, X, Y)


def test_every_weight_that_is_drawn_once_is_named():
    model, _ = make(where="*")

    def guide(x, y=None):
        by_hand(x)
        pyro.sample("net.bias", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.warns(UserWarning, match="site 'net.bias'") as caught:
        vd.TraceVD_ELBO().loss(model, guide, X, Y)
    assert len(caught) == 1


def test_normals_that_are_no_weights_are_left_alone():
    """Of a vector, inside a plate, auxiliary, observed: plain tensors, as without the library."""
    seen = {}

    def model():
        seen["vector"] = pyro.sample("vector", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", 2):
            seen["rows"] = pyro.sample("rows_", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2))
        seen["scalar"] = pyro.sample("scalar", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(seen["scalar"], 1.0), obs=torch.zeros(()))

    def guide():
        pyro.sample("vector", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", 2):
            pyro.sample("rows_", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2))
        pyro.sample("scalar", dist.Normal(0.0, 1.0))
        pyro.sample("extra", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2), infer={"is_auxiliary": True})

    vd.TraceVD_ELBO().loss(model, guide)
    assert all(type(value) is torch.Tensor for value in seen.values())


def test_repr():
    assert repr(vd.TraceVD_ELBO()) == "TraceVD_ELBO(estimator='local', num_particles=1, kl_weight=1.0)"
    elbo = vd.TraceVD_ELBO("shared", num_particles=3, kl_weight=0.5)
    assert repr(elbo) == "TraceVD_ELBO(estimator='shared', num_particles=3, kl_weight=0.5)"


@pytest.mark.parametrize("estimator", ["local", "per_example", "flipout"])
def test_a_weight_that_a_handler_has_given_a_value_is_not_warned_of(estimator):
    bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())

    def model(x):
        mean = bnn(x)
        with vd.data_plate(len(x), len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.zeros(len(x), 2))

    guide = AutoSparseVD(model)
    terms = vd.TraceVD_ELBO(estimator).terms(model, vd.posterior_mean(guide), torch.ones(4, 3))  # warnings are errors
    assert terms.loss.isfinite()
