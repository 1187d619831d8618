"""gradient_variance against closed forms.

Statistical assertions hold within oracles.standard_errors: each fails in one of a million runs if all is right.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from helpers.oracles import standard_errors
from pyro_vd.guides import AutoSparseVD

N, SCALE = 20, 0.5
X = torch.linspace(-2.0, 3.0, N)
Y = torch.sin(X)


def model(x, y):
    """y ~ N(x * w, 1): d loss / d loc = N / M * sum (x * w - y) * x, plus the gradient of the KL."""
    w = pyro.sample("w", dist.Normal(torch.zeros(1, 1), 1.0).to_event(2))
    with vd.data_plate(N, len(x)):
        pyro.sample("y", dist.Normal((x[:, None] @ w)[:, 0], 1.0), obs=y)


def guide(x, y):
    loc = pyro.param("loc", torch.full((1, 1), 0.3))
    log_sigma2 = pyro.param("log_sigma2", torch.full((1, 1), 2 * math.log(SCALE)))
    pyro.sample("w", vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(2))


def measured(estimator, x, y, *, draws=1000, batch_size=None, noise=True):
    run = guide if noise else vd.posterior_mean(guide)
    variance = vd.gradient_variance(
        model, run, vd.TraceVD_ELBO(estimator), x, y, num_draws=draws, batch_size=batch_size
    )
    return variance.parameters["loc"].item()


def assert_variance(value, expected, draws=1000, kurtosis=3.0):
    """The standard error of a sample variance is sqrt((kurtosis - 1) / draws) of it."""
    assert abs(value / expected - 1) <= standard_errors() * math.sqrt((kurtosis - 1) / draws), (value, expected)


def test_two_gradients_have_half_the_square_of_their_difference():
    torch.manual_seed(0)
    variance = measured("local", X, Y, draws=2)
    torch.manual_seed(0)
    with pyro.poutine.trace() as _:
        guide(X, Y)  # which the sites are read from
    gradients = []
    for _ in range(2):
        loss = vd.TraceVD_ELBO().differentiable_loss(model, guide, X, Y)
        gradients += torch.autograd.grad(loss, pyro.param("loc").unconstrained())
    assert variance == pytest.approx(((gradients[0] - gradients[1]) ** 2 / 2).item(), rel=1e-4)


def test_one_weight_draw_for_all_examples():
    assert_variance(measured("shared", X, Y), SCALE**2 * X.square().sum().item() ** 2)


@pytest.mark.parametrize("estimator", ["local", "per_example"])
def test_noise_of_its_own_for_every_example(estimator):
    # d loss / d loc = sum x_m * (x_m * loc + |x_m| * scale * e_m - y_m)
    assert_variance(measured(estimator, X, Y), SCALE**2 * (X**4).sum().item())


def test_minibatches_without_noise_have_the_variance_of_the_data():
    gradients = N * (X * 0.3 - Y) * X
    expected = gradients.var(unbiased=False).item() / 5
    kurtosis = ((gradients - gradients.mean()) ** 4).mean().item() / (expected * 5) ** 2
    assert_variance(measured("local", X, Y, batch_size=5, noise=False), expected, kurtosis=3 + kurtosis)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 15])
@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_minibatches_add_their_variance_to_that_of_the_noise(estimator, batch_size):
    """Var = N**2 * (Var[L_i] / M + (1 - 1 / M) * Cov[L_i, L_j]), the covariance being that of one shared weight."""
    per_example = (X**4).mean().item() * SCALE**2 + ((X * 0.3 - Y) * X).var(unbiased=False).item()
    shared = SCALE**2 * X.square().mean().item() ** 2 if estimator == "shared" else 0.0
    expected = N**2 * (per_example / batch_size + (1 - 1 / batch_size) * shared)
    value = measured(estimator, X, Y, draws=2000, batch_size=batch_size)
    # Products of Gaussian noise and of the few examples: kurtosis far below 12.
    assert_variance(value, expected, draws=2000, kurtosis=12.0)


def test_only_noise_varies_without_batch_size():
    assert measured("local", X, Y, draws=5, noise=False) == 0.0


def test_parameters_and_their_gradients_are_left_alone():
    guide(X, Y)
    loc = pyro.param("loc").unconstrained()
    vd.gradient_variance(model, guide, vd.TraceVD_ELBO(), X, Y, num_draws=3)
    assert loc.grad is None and loc.item() == pytest.approx(0.3)


def test_layers_collect_weights_noise_and_biases():
    bnn = vd.BayesianModule(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), vd.ImproperLogUniform())

    def classify(x):
        logits = bnn(x)
        with vd.data_plate(5, 5):
            pyro.sample("y", dist.Categorical(logits=logits), obs=torch.tensor([0, 1, 0, 1, 1]))

    guide = AutoSparseVD(classify)
    variance = vd.gradient_variance(classify, guide, vd.TraceVD_ELBO(), torch.randn(5, 3), num_draws=4)
    assert set(variance.per_layer()) == {"net.0", "net.1"}
    names = [name for name in variance.parameters if name.endswith(("net.0.weight", "net.0.bias"))]
    assert len(names) == 3
    every = torch.cat([variance.parameters[name].flatten() for name in names])
    assert variance.per_layer()["net.0"] == pytest.approx(every.mean().item())
    assert variance.per_parameter()[names[0]] == pytest.approx(variance.parameters[names[0]].mean().item())
    table = str(variance).splitlines()
    assert len(table) == 1 + len(variance.parameters) and "over 4 draws" in table[0]


@pytest.mark.parametrize(
    "options, text", [({"num_draws": 1}, "num_draws.*got 1"), ({"num_draws": 2, "batch_size": 0}, "batch_size.*got 0")]
)
def test_wrong_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        vd.gradient_variance(model, guide, vd.TraceVD_ELBO(), X, Y, **options)
