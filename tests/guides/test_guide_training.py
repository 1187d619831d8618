"""Guides in training: gradients, projections, losses that fall, saving and loading."""

from __future__ import annotations

import copy
import io
from operator import attrgetter

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

import pyro_vd as vd
from helpers.guide_cases import (
    FAMILIES,
    SITES,
    X,
    Y,
    make_guide,
    make_model,
    prior_for,
    seeded,
)
from pyro_vd import guides
from pyro_vd.guides import AutoSparseVD


@pytest.mark.parametrize("name, options", [
    ("AutoSparseVD", {"init_log_sigma2": -1.0}), ("AutoMeanField", {"init_log_sigma2": -1.0}),
    ("AutoVariationalDropout", {"init_log_alpha": -1.0}),
])  # fmt: skip
def test_gradient_of_loc_carries_the_noise_under_multiplicative_noise_only(name, options):
    """Of a linear output: d sum(y) / d loc is sum(x) + sum(x**2 * alpha * loc * noise / std) or just sum(x)."""
    torch.set_default_dtype(torch.float64)
    x = torch.randn(5, 4)
    bnn = vd.BayesianModule(nn.Linear(4, 3, bias=False), prior_for(name))
    guide = getattr(guides, name)(bnn, **options)
    guide(x)
    loc = attrgetter("net.weight")(guide.locs)
    posterior = guide.posterior("net.weight")
    for seed in range(3):
        trace = seeded(seed, lambda: poutine.trace(vd.lrt(guide)).get_trace(x))
        output = poutine.replay(bnn, trace=trace)(x)
        noise = seeded(seed, torch.randn, 5, 3)
        deviation = (x.square() @ posterior.variance.T).sqrt()
        torch.testing.assert_close(output, x @ loc.T + deviation * noise, rtol=1e-10, atol=1e-12)
        (gradient,) = torch.autograd.grad(output.sum(), [loc])
        expected = x.sum(0).expand(3, 4)
        if name == "AutoVariationalDropout":
            ratio = noise / deviation
            expected = expected + posterior.log_alpha.exp() * loc * (ratio.T @ x.square())
            assert (gradient - x.sum(0)).abs().max() > 0.05
        torch.testing.assert_close(gradient, expected.detach(), rtol=1e-10, atol=1e-12)


def train(name, model, guide, x, y, optimiser):
    if optimiser == "pyro":
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), vd.TraceVD_ELBO())
        for _ in range(80):
            svi.step(x, y)
        return
    loss = vd.TraceVD_ELBO()(model, guide)
    loss(x, y)
    adam = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(80):
        adam.zero_grad()
        loss(x, y).backward()
        adam.step()


@pytest.mark.parametrize("optimiser", ["pyro", "torch"])
@pytest.mark.parametrize("name, options", FAMILIES)
def test_training_lowers_the_loss(name, options, optimiser):
    model, net, guide = make_guide(name, options)
    x = torch.randn(50, 4)
    y = torch.stack([x[:, 0] - x[:, 1], x[:, 2]], -1)
    elbo = vd.TraceVD_ELBO(num_particles=20)
    start = {n: p.detach().clone() for n, p in net.named_parameters() if n.endswith("bias")}
    before = float(elbo.differentiable_loss(model, guide, x, y).detach())
    train(name, model, guide, x, y, optimiser)
    after = float(elbo.differentiable_loss(model, guide, x, y).detach())
    assert after < 0.8 * before
    assert all(not torch.equal(net.get_parameter(n), value) for n, value in start.items())


def make_trained(name, options):
    """A model that has run, with a guide away from its start."""
    model, net, guide = make_guide(name, options, noise_site="before")
    vd.TraceVD_ELBO(analytic_only=False).differentiable_loss(model, guide, X, Y)  # stores the net's parameters
    with torch.no_grad():
        for parameter in (*guide.parameters(), net[0].bias, net[2].bias):
            parameter.sub_(0.1)
    return model, net, guide


def assert_same(guide, expected, net=None, expected_net=None):
    draws = seeded(9, guide, X, Y)
    for site, value in expected.items():
        assert torch.equal(draws[site], value), site
    if net is not None:
        for bias in ("0.bias", "2.bias"):
            assert torch.equal(net.get_parameter(bias), expected_net.get_parameter(bias)), bias


@pytest.mark.parametrize("name, options", FAMILIES)
def test_state_dict_and_deep_copy(name, options):
    _, net, guide = make_trained(name, options)
    expected = seeded(9, guide, X, Y)
    twin = copy.deepcopy(guide)
    own = {parameter.data_ptr() for parameter in guide.parameters()}
    assert own.isdisjoint({parameter.data_ptr() for parameter in twin.parameters()})
    pyro.clear_param_store()  # the store hands out one tensor for each name
    assert_same(twin, expected)
    file = io.BytesIO()
    torch.save({"guide": guide.state_dict(), "net": net.state_dict()}, file)
    file.seek(0)
    pyro.clear_param_store()
    _, other_net, other = make_guide(name, options, noise_site="before")
    assert not torch.equal(other(X, Y)[SITES[0]], expected[SITES[0]])
    state = torch.load(file)
    other.load_state_dict(state["guide"])
    other_net.load_state_dict(state["net"])
    assert_same(other, expected, other_net, net)


@pytest.mark.parametrize("when", ["before the first call", "after the first call"])
@pytest.mark.parametrize("name, options", FAMILIES)
def test_parameter_store(name, options, when, tmp_path):
    """A saved store fills model and guide; the tensors that the guide uses are those that Pyro trains."""
    _, net, guide = make_trained(name, options)
    expected = seeded(9, guide, X, Y)
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    model, other_net = make_model(prior_for(name), "before")
    other = getattr(guides, name)(model, **options)
    if when == "after the first call":
        other(X, Y)
    pyro.get_param_store().load(tmp_path / "store")
    elbo = vd.TraceVD_ELBO(analytic_only=False)
    elbo.differentiable_loss(model, other, X, Y)
    assert_same(other, expected, other_net, net)
    start = {n: parameter.detach().clone() for n, parameter in other.named_parameters()}
    SVI(model, other, pyro.optim.Adam({"lr": 0.01}), elbo).step(X, Y)
    for parameter_name, parameter in other.named_parameters():
        assert not torch.equal(parameter, start[parameter_name]), parameter_name


@pytest.mark.parametrize("name, options", FAMILIES)
def test_median(name, options):
    model, net = make_model(prior_for(name), noise_site="before")
    guide = getattr(guides, name)(model, **options)
    median = guide.median(X, Y)  # before any call
    assert sorted(median) == sorted(["noise", *SITES])
    for site in SITES:
        assert torch.equal(median[site], net.get_parameter(site.removeprefix("net.")))
        assert not median[site].requires_grad
    draws = torch.stack([guide(X, Y)["noise"] for _ in range(200)])
    assert draws.min() < median["noise"] < draws.max()


@pytest.mark.parametrize("threshold", [None, 0.0, 3.0])
def test_zero_above_sets_means_to_zero_and_changes_no_other(threshold):
    model, _ = make_model(vd.ImproperLogUniform())
    guide = AutoSparseVD(model, init_log_sigma2=-3.0, zero_above=threshold)
    guide(X, Y)
    with torch.no_grad():  # sizes far on either side of the thresholds
        for site in SITES:
            loc = guide.locs.get_parameter(site)
            loc.mul_(torch.linspace(1e-3, 20, loc.numel()).view_as(loc))
    before = {site: guide.locs.get_parameter(site).detach().clone() for site in SITES}
    posteriors = guide.posteriors()
    for site in SITES:
        log_alpha = -3.0 - 2 * before[site].abs().log()
        kept = torch.ones_like(log_alpha, dtype=torch.bool) if threshold is None else log_alpha <= threshold
        assert 0 < kept.sum() and (threshold is None or kept.sum() < kept.numel())
        assert torch.equal(posteriors[site].loc, before[site] * kept)
        assert torch.equal(guide.locs.get_parameter(site), before[site] * kept)


def test_zeroed_weights_stay_zero_in_training_and_several_particles_pass_backward():
    model, _ = make_model(vd.ImproperLogUniform())
    guide = AutoSparseVD(model, init_log_sigma2=-1.0, zero_above=3.0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), vd.TraceVD_ELBO(num_particles=2))
    with torch.no_grad():
        guide(X, Y)
        guide.locs.get_parameter(SITES[0]).view(-1)[0] = 1e-4
    for _ in range(5):
        svi.step(X, Y)
    assert guide.posteriors()[SITES[0]].loc.view(-1)[0] == 0
