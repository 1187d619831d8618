"""mode="moments" with guides that are not of this library: a plain Normal is a Gaussian weight, others are named."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

import pyro_vd as vd

LOC, SCALE = torch.linspace(-1, 1, 6).double().reshape(2, 3), torch.linspace(0.2, 0.9, 6).double().reshape(2, 3)
X = torch.arange(12.0).double().reshape(4, 3) / 6


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def make():
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(LOC)
        net.bias.fill_(0.5)
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean = bnn(x)
        with vd.data_plate(len(x), len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)

    return model


def of_normal():
    pyro.sample("net.weight", dist.Normal(LOC, SCALE).to_event(2))


def guide_of(fn):
    return lambda x, y=None: pyro.sample("net.weight", fn())


def moments(guide, **options):
    return vd.predictive_distribution(make(), guide, X, mode="moments", num_samples=400, **options)["y"]


@pytest.mark.parametrize("kind", ["Normal", "expanded", "DropoutNormal"])
def test_the_variance_is_that_of_the_weights_and_the_likelihood(kind):
    scale = SCALE if kind != "expanded" else torch.full((2, 3), 0.4)
    fns = {
        "Normal": lambda: dist.Normal(LOC, SCALE).to_event(2),
        "expanded": lambda: dist.Normal(LOC, 0.4).to_event(1).to_event(1),
        "DropoutNormal": lambda: vd.DropoutNormal(LOC, log_sigma2=2 * SCALE.log()).to_event(2),
    }
    found = moments(guide_of(fns[kind]))
    torch.testing.assert_close(found.mean, X @ LOC.T + 0.5)  # by hand
    torch.testing.assert_close(found.variance, 0.3**2 + X**2 @ (scale**2).T)


OTHERS = {
    "Laplace": lambda: dist.Laplace(LOC, SCALE).to_event(2),
    "MultivariateNormal": lambda: dist.MultivariateNormal(LOC, torch.eye(3)).to_event(1),
    "MaskedDistribution": lambda: dist.Normal(LOC, SCALE).mask(torch.tensor(True)).to_event(2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_weight_of_another_kind_is_named_or_drawn(name):
    with pytest.raises(ValueError, match=f"site 'net.weight': expected .* independent Gaussians .*, got {name}; write"):
        moments(guide_of(OTHERS[name]))
    if name == "Laplace":
        found = vd.predictive_distribution(
            make(), guide_of(OTHERS[name]), X, mode="moments", num_samples=2000, on_unknown="sample"
        )["y"]
        expected = 0.3**2 + X**2 @ (2 * SCALE**2).T  # a Laplace has twice the square of its scale
        torch.testing.assert_close(found.variance, expected, rtol=0.25, atol=0.0)  # 6 standard deviations at most


@pytest.mark.parametrize("make_guide", [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal])
@pytest.mark.parametrize("on_unknown", ["error", "sample"])
def test_a_weight_that_is_a_function_of_other_noise_is_named(make_guide, on_unknown):
    model = make()
    guide = make_guide(model)
    guide(X, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="site 'net.weight': expected .*, got a Delta of the sites .*write mode=.weig"):
        vd.predictive_distribution(model, guide, X, mode="moments", on_unknown=on_unknown)


def test_a_point_has_no_variance():
    model = make()
    guide = AutoDelta(model)
    guide(X, torch.zeros(4, 2))
    found = vd.predictive_distribution(model, guide, X, mode="moments", num_samples=3)["y"]
    torch.testing.assert_close(found.variance, torch.full((4, 2), 0.09))
