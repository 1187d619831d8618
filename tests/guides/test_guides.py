"""Guides: where they start, which sites they cover, and that they are ordinary Pyro guides."""

from __future__ import annotations

from operator import attrgetter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_vd as vd
from helpers.guide_cases import (
    FAMILIES,
    NAMES,
    SITES,
    X,
    Y,
    latent_sites,
    make_guide,
    make_model,
    prior_for,
    seeded,
)
from pyro_vd import guides
from pyro_vd.guides import AutoMeanField, AutoSparseVD, AutoVariationalDropout
from pyro_vd.guides.base import init_to_net_value


@pytest.mark.parametrize("name, options", FAMILIES)
def test_starts_at_the_values_of_the_net(name, options):
    _, net, guide = make_guide(name, options)
    weights = {site: net.get_parameter(site.removeprefix("net.")) for site in SITES}
    before = {site: weight.detach().clone() for site, weight in weights.items()}
    for site, weight in weights.items():
        assert torch.equal(guide.posterior(site).mean, weight), site
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    for site, weight in weights.items():
        assert torch.equal(weight, before[site]), "training the guide must not change the net"
        assert not torch.equal(guide.posterior(site).mean, weight)


@pytest.mark.parametrize("cls", [AutoSparseVD, AutoMeanField])
@pytest.mark.parametrize("init, expected", [({}, -10.0), ({"init_log_sigma2": -3.5}, -3.5)])
def test_init_log_sigma2(cls, init, expected):
    model, net = make_model(dist.Normal(0.0, 1.0))
    guide = cls(model, **init)
    guide(X, Y)
    for site in SITES:
        loc = net.get_parameter(site.removeprefix("net.")).detach()
        posterior = guide.posterior(site)
        torch.testing.assert_close(posterior.variance.detach(), torch.full_like(loc, expected).exp())
        torch.testing.assert_close(guide.log_alpha(site).detach(), expected - 2 * loc.abs().log())


@pytest.mark.parametrize("granularity, shapes", [
    ("weight", ((3, 4), (2, 3))), ("unit", ((3, 1), (2, 1))), ("layer", ((1, 1), (1, 1))),
])  # fmt: skip
@pytest.mark.parametrize("init, expected", [({}, -3.0), ({"init_log_alpha": -1.25}, -1.25)])
def test_log_alpha_of_each_granularity(granularity, shapes, init, expected):
    _, _, guide = make_guide("AutoVariationalDropout", {"granularity": granularity, **init})
    for site, shape in zip(SITES, shapes, strict=True):
        assert guide.log_alpha(site).shape == shape
        assert torch.equal(guide.log_alpha(site), torch.full(shape, expected))
        posterior = guide.posterior(site)
        torch.testing.assert_close(posterior.variance, posterior.loc.square() * torch.tensor(expected).exp())


def test_one_log_alpha_for_each_output_channel():
    bnn = vd.BayesianModule(nn.Conv2d(2, 5, 3), vd.ImproperLogUniform())
    guide = AutoVariationalDropout(bnn, "unit")
    guide(torch.randn(1, 2, 4, 4))
    assert guide.log_alpha("net.weight").shape == (5, 1, 1, 1)


def test_errors():
    model, _ = make_model(vd.ImproperLogUniform())
    for name in NAMES:
        with pytest.raises(ValueError, match=r"seen its model once.*call guide\(\*args\)"):
            getattr(guides, name)(lambda x: pyro.sample("w", prior_for(name).expand([3]))).log_alpha("w")  # noqa: B023
        _, _, guide = make_guide(name)
        with pytest.raises(ValueError, match=r"weight sites \['net.0.weight', 'net.2.weight'\], got 'net.1.weight'"):
            guide.log_alpha("net.1.weight")
        pyro.clear_param_store()
    with pytest.raises(ValueError, match="'weight', 'unit', 'layer'.*got 'row'"):
        AutoVariationalDropout(model, "row")
    with pytest.raises(ValueError, match=r"init_log_alpha: expected a number <= 0 \(alpha <= 1\), got 0.1"):
        AutoVariationalDropout(model, init_log_alpha=0.1)
    with pytest.raises(ValueError, match=r"AutoSparseVD: expected a latent site that matches where.*name the weights"):
        AutoSparseVD(model, where="net.5.*")(X, Y)


@pytest.mark.parametrize("name, options", FAMILIES)
def test_is_an_ordinary_guide(name, options):
    """Its call draws plain tensors, anew each time; its sites are the model's, in order; Predictive runs it."""
    model, _, guide = make_guide(name, options)
    draws = [guide(X, Y) for _ in range(8)]
    for site, shape in zip(SITES, ((3, 4), (2, 3)), strict=True):
        assert type(draws[0][site]) is torch.Tensor and draws[0][site].shape == shape
        assert len({tuple(draw[site].flatten().tolist()) for draw in draws}) > 1
    assert latent_sites(guide, X, Y) == latent_sites(poutine.replay(model, poutine.trace(guide).get_trace(X, Y)), X, Y)
    samples = Predictive(model, guide=guide, num_samples=5, return_sites=(*SITES, "y"))(X)
    assert samples["y"].shape == (5, 6, 2)
    for site in SITES:  # Pyro puts an axis of the plate into the shape
        assert samples[site].flatten(1).shape == (5, draws[0][site].numel())
    assert len(samples["net.0.weight"].flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("noise_site", ["before", "after"])
@pytest.mark.parametrize("name", NAMES)
def test_covers_the_other_sites_of_a_model(name, noise_site):
    """In the order of the model: Pyro warns (an error here) of a guide in another order at every step."""
    model, _, guide = make_guide(name, noise_site=noise_site)
    expected = ["noise", *SITES] if noise_site == "before" else [*SITES, "noise"]
    assert sorted(guide(X, Y)) == sorted(expected)
    noise = torch.stack([guide(X, Y)["noise"] for _ in range(5)])
    assert (noise > 0).all() and len(noise.unique()) == 5
    assert [site for site in latent_sites(guide, X, Y) if site in expected] == expected
    elbo = vd.TraceVD_ELBO(analytic_only=False)
    elbo.differentiable_loss(model, guide, X, Y).backward()
    trained = [name for name, parameter in guide.named_parameters() if parameter.grad is not None]
    assert any("noise" in name for name in trained) and any("net" in name for name in trained)


def test_guides_are_combined_by_auto_guide_list():
    model, _ = make_model(vd.ImproperLogUniform(), noise_site="after")
    started = InitMessenger(init_to_net_value)(model)  # Pyro's parts run the model; the improper prior has no draws
    guide = AutoGuideList(started)
    guide.append(AutoSparseVD(model, where="net.0.*"))
    guide.append(AutoVariationalDropout(model, where=lambda site: site == "net.2.weight"))
    guide.append(AutoNormal(poutine.block(started, expose=["noise"])))
    assert list(guide(X, Y)) == ["net.0.weight", "net.2.weight", "noise"]
    assert guide[0].weight_sites == ("net.0.weight",) and guide[1].weight_sites == ("net.2.weight",)
    terms = vd.TraceVD_ELBO(analytic_only=False).terms(model, guide, X, Y)
    torch.testing.assert_close(
        terms.kl["net.0.weight"], vd.kl.kl_log_uniform(guide[0].log_alpha("net.0.weight"), "sigmoid").sum()
    )
    torch.testing.assert_close(
        terms.kl["net.2.weight"], vd.kl.kl_log_uniform(guide[1].log_alpha("net.2.weight"), "cubic").sum()
    )


def test_guide_written_by_hand_gives_the_same_loss():
    model, _, guide = make_guide("AutoSparseVD", {"init_log_sigma2": -2.0})

    def by_hand(x, y=None):
        for site in SITES:
            loc, log_sigma2 = (pyro.param(f"{q}.{site}", attrgetter(site)(getattr(guide, q)).detach().clone())
                               for q in ("locs", "log_sigma2s"))  # fmt: skip
            pyro.sample(site, vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(2))

    by_hand(X)
    store = pyro.get_param_store()
    for elbo, handler in ((vd.TraceVD_ELBO(), lambda g: g), (vd.TraceVD_ELBO("shared"), lambda g: g),
                          (TraceMeanField_ELBO(), vd.lrt)):  # fmt: skip
        losses = [seeded(5, elbo.differentiable_loss, model, handler(g), X, Y) for g in (guide, by_hand)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
        ours = torch.autograd.grad(losses[0], [attrgetter(s)(guide.log_sigma2s) for s in SITES])
        theirs = torch.autograd.grad(losses[1], [store._params[f"log_sigma2s.{s}"] for s in SITES])
        torch.testing.assert_close(ours, theirs)


def test_model_written_by_hand_without_a_bayesian_module():
    torch.set_default_dtype(torch.float64)
    x, y = torch.randn(6, 3), torch.randn(6, 2)

    def model(x, y=None):
        weight = pyro.sample("w", vd.ImproperLogUniform().expand([3, 2]).to_event(2))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)

    guide = AutoSparseVD(model, init_log_sigma2=-1.0)
    guide(x, y)
    loss = seeded(3, vd.TraceVD_ELBO().differentiable_loss, model, guide, x, y)
    loc, variance = guide.posterior("w").loc, guide.posterior("w").variance
    noise = seeded(3, torch.randn, 6, 2)
    output = x @ loc + (x.square() @ variance).sqrt() * noise
    nll = -10 * dist.Normal(output, 1.0).log_prob(y).sum()
    torch.testing.assert_close(loss, nll + vd.kl.kl_log_uniform(guide.log_alpha("w")).sum(), rtol=1e-12, atol=0)


def test_pyro_module_with_pyro_sample():
    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.fc = PyroModule[nn.Linear](4, 2)
            self.fc.weight = PyroSample(vd.ImproperLogUniform().expand([2, 4]).to_event(2))

        def forward(self, x, y=None):
            output = self.fc(x)
            with vd.data_plate(50, len(x)):
                return pyro.sample("y", dist.Normal(output, 0.5).to_event(1), obs=y)

    net = Net()
    guide = AutoSparseVD(net, init_log_sigma2=-2.0)
    guide(X, Y)
    assert guide.weight_sites == ("fc.weight",)
    loss = seeded(2, vd.TraceVD_ELBO().differentiable_loss, net, guide, X, Y)
    posterior = guide.posterior("fc.weight")
    noise = seeded(2, torch.randn, 6, 2)
    output = X @ posterior.loc.T + net.fc.bias + (X.square() @ posterior.variance.T).sqrt() * noise
    expected = -50 / 6 * dist.Normal(output, 0.5).log_prob(Y).sum() + vd.kl.kl_log_uniform(posterior.log_alpha).sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_log_alpha_is_projected_and_keeps_its_gradient(estimator):
    model, _, guide = make_guide("AutoVariationalDropout")
    raw = attrgetter(SITES[0])(guide.log_alphas)
    gradients = []
    for above in (0.0, 0.7):
        raw.data.fill_(above)
        elbo = vd.TraceVD_ELBO(estimator, num_particles=2)
        loss = seeded(1, elbo.differentiable_loss, model, guide, X, Y)
        (gradient,) = torch.autograd.grad(loss, [raw])
        gradients.append(gradient)
        assert torch.equal(guide.log_alpha(SITES[0]), torch.zeros(3, 4)) and torch.equal(raw, torch.zeros(3, 4))
    assert (gradients[0] != 0).all()
    torch.testing.assert_close(gradients[0], gradients[1])
    # A step up in log_alpha is taken back; one down is not.
    pyro.clear_param_store()
    optimizer = torch.optim.SGD([raw], lr=1.0)
    for gradient, expected in ((-1.0, 0.0), (0.5, -0.5)):
        raw.grad = torch.full_like(raw, gradient)
        optimizer.step()
        assert torch.equal(guide.log_alpha(SITES[0]), torch.full((3, 4), expected))
