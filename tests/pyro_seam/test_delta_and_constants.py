"""The KL of sites that a guide samples as a Delta with noise of its own, and of elements that a layer keeps fixed."""

from __future__ import annotations

import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, mixed_guide

SCALES = {
    "HalfNormal": dist.HalfNormal(1.0),
    "Gamma": dist.Gamma(2.0, 3.0),
    "LogNormal": dist.LogNormal(0.0, 0.5),
    "Uniform": dist.Uniform(0.1, 2.0),
    "Beta": dist.Beta(2.0, 3.0),
    "Dirichlet": dist.Dirichlet(torch.ones(3)),
}
X, Y = torch.linspace(-1, 1, 12).reshape(6, 2), torch.linspace(0, 1, 6)


def program(prior):
    bnn = vd.BayesianModule(nn.Linear(2, 1), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        scale = pyro.sample("scale", prior).max()
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(6, len(x)):
            return pyro.sample("y", dist.Normal(mean, scale), obs=y)

    return model


def loss_and_gradient(elbo, model, guide):
    pyro.set_rng_seed(1)
    loss = elbo.differentiable_loss(model, guide, X, Y)
    learned = {n: p for n, p in guide.named_parameters() if "scale" in n.split(".")[-1] or "net" not in n}
    return loss, torch.autograd.grad(loss, list(learned.values()))


@pytest.mark.parametrize("prior", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal])
def test_the_jacobian_of_a_noise_scale_is_counted(family, prior):
    model = program(prior)
    guide = family(model)
    guide(X, Y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3
    expected, gradient = loss_and_gradient(Trace_ELBO(), model, guide)
    loss, ours = loss_and_gradient(vd.TraceVD_ELBO("shared"), model, guide)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, gradient)


@pytest.mark.parametrize("prior", SCALES.values(), ids=SCALES)
def test_the_gradient_of_a_noise_scale_beside_random_weights(prior):
    model = program(prior)
    mixed = mixed_guide(model, AutoNormal(pyro.poutine.block(model, hide_fn=_net)), AutoMeanField(model, where="net.*"))
    for guide in (AutoMeanField(model), mixed):
        pyro.clear_param_store()
        guide(X, Y)
        # The KL of the weights does not depend on the parameters of the scale.
        expected = loss_and_gradient(Trace_ELBO(), model, guide)[1]
        torch.testing.assert_close(loss_and_gradient(vd.TraceVD_ELBO("shared"), model, guide)[1], expected)
        if guide is not mixed:  # whose scale is covered by a guide of Pyro's, with Pyro's KL rule
            torch.testing.assert_close(loss_and_gradient(TraceMeanField_ELBO(), model, guide)[1], expected)


def _net(message):
    return message["name"].startswith("net") or message["name"] in ("y", "data")


def embedding():
    net = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Flatten(), nn.Linear(6, 2))
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(tokens, y=None):
        logits = bnn(tokens)
        with vd.data_plate(4, len(tokens)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return net, model


TOKENS, LABELS = torch.tensor([[0, 1], [2, 3], [4, 1], [1, 1]]), torch.tensor([0, 1, 1, 0])


def by_hand(family):
    def guide(tokens, y=None):
        loc = pyro.param("loc", torch.full((5, 3), 0.2))
        scale = pyro.param("scale", torch.full((5, 3), 0.5), constraint=dist.constraints.positive)
        pyro.sample("net.0.weight", family(loc, scale).to_event(2))
        pyro.sample("net.2.weight", dist.Normal(torch.zeros(2, 6), 1.0).to_event(2))

    return guide


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoDelta", "Normal", "Laplace"])
def test_a_padding_row_has_no_kl_under_guides_of_pyro(kind):
    _, model = embedding()
    auto = {"AutoNormal": AutoNormal, "AutoDelta": AutoDelta}
    guide = auto[kind](model) if kind in auto else by_hand(getattr(dist, kind))
    guide(TOKENS, LABELS)
    names = [name for name in pyro.get_param_store() if name.rpartition("net.0")[1] or name in ("loc", "scale")]
    elbo = vd.TraceVD_ELBO("shared", analytic_only=False)
    pyro.set_rng_seed(0)
    kl = elbo.terms(model, guide, TOKENS, LABELS).kl
    term = sum(value for site, value in kl.items() if site.startswith("net.0"))
    parameters = [pyro.get_param_store()._params[name] for name in names]
    for gradient in torch.autograd.grad(term, parameters):
        assert not gradient[1].any() and gradient[[0, 2, 3, 4]].any()
    if kind in ("AutoDelta", "AutoNormal"):
        pyro.set_rng_seed(0)
        shown = pyro.poutine.trace(guide).get_trace(TOKENS, LABELS)
        value, rows = shown.nodes["net.0.weight"]["value"], [0, 2, 3, 4]
        expected = -dist.Normal(0.0, 1.0).log_prob(value[rows]).sum()
        if kind == "AutoNormal":
            noise = shown.nodes["net.0.weight_unconstrained"]
            expected = expected + noise["fn"].base_dist.log_prob(value)[rows].sum()
        torch.testing.assert_close(term, expected)


def test_what_cannot_be_split_is_counted_whole():
    _, model = embedding()
    guide = AutoMultivariateNormal(model)
    guide(TOKENS, LABELS)
    losses = []
    for elbo in (vd.TraceVD_ELBO("shared"), Trace_ELBO()):
        pyro.set_rng_seed(0)
        losses.append(elbo.differentiable_loss(model, guide, TOKENS, LABELS))
    torch.testing.assert_close(*losses)


ONCE = {
    "MultivariateNormal": lambda loc: dist.MultivariateNormal(loc, torch.eye(2)).to_event(1),
    "Laplace": lambda loc: dist.Laplace(loc, 1.0).to_event(2),
    "Normal": lambda loc: dist.Normal(loc, 1.0).to_event(2),
    "Delta": lambda loc: dist.Delta(loc).to_event(2),  # which has no noise
}


@pytest.mark.parametrize("estimator", ["local", "flipout", "shared"])
@pytest.mark.parametrize("name", ONCE)
def test_a_weight_of_a_model_by_hand_that_is_drawn_once_is_named_once(name, estimator):
    def model(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        with vd.data_plate(4, len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=torch.zeros(4, 2))

    def guide(x):
        pyro.sample("weight", ONCE[name](torch.zeros(3, 2)))

    for shared_sites in ((), ["weight"]):
        elbo = vd.TraceVD_ELBO(estimator, analytic_only=False, shared_sites=shared_sites)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                elbo.loss(model, guide, torch.ones(4, 3))
        expected = name not in ("Normal", "Delta") and estimator != "shared" and not shared_sites
        said = [str(one.message) for one in caught if "drawn once a step" in str(one.message)]
        assert len(said) == expected and all("'weight'" in one and name in one for one in said)


@pytest.mark.parametrize("shapes", [((3, 2), (3, 1)), ((1, 2), (3, 2)), ((3, 2), (2,)), ((2,), (3, 2))])
@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_a_guide_of_another_shape_than_the_model(shapes, estimator):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(shapes[0]), 1.0).to_event(len(shapes[0])))
        pyro.sample("x", dist.Normal((z * 1.0).sum(), 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Normal(torch.zeros(shapes[1]), 1.0).to_event(len(shapes[1])))

    wanted, got = (re.escape(str(shape)) for shape in shapes)
    with pytest.raises(ValueError, match=f"site 'z': expected a guide distribution of shape {wanted}.*{got}"):
        vd.TraceVD_ELBO(estimator, shared_sites=["z"], analytic_only=False).loss(model, guide)


def test_a_factor_in_the_guide_is_counted():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide(has_rsample=True):
        pyro.sample("z", dist.Normal(0.5, 1.0))
        pyro.factor("f", torch.tensor(3.0), has_rsample=has_rsample)

    losses = []
    for elbo in (vd.TraceVD_ELBO(), TraceMeanField_ELBO()):
        losses.append(elbo.loss(model, guide))
    assert losses[0] == pytest.approx(losses[1])
    with pytest.raises(NotImplementedError, match="site 'f': expected a reparameterised"):
        vd.TraceVD_ELBO().loss(model, lambda: guide(False))
