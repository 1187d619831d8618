"""mode="moments" on NumPyro: exact for two linear layers, equal to the Pyro side, functions of an element, refusals."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import pytest
import quax
import torch
from torch import nn

import helpers.mirror_compiling  # noqa: F401
import pyro_vd
import pyro_vd.numpyro as vd
from helpers.oracles import standard_errors
from pyro_vd.guides import AutoMeanField
from pyro_vd.numpyro.predict.moments import GaussianArray, Pass

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
ACTIVATIONS = {
    "relu": (jax.nn.relu, nn.ReLU()),
    "tanh": (jnp.tanh, nn.Tanh()),
    "silu": (jax.nn.silu, nn.SiLU()),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), nn.GELU()),
    "sigmoid": (jax.nn.sigmoid, nn.Sigmoid()),
    "softplus": (jax.nn.softplus, nn.Softplus()),
    "leaky relu": (jax.nn.leaky_relu, nn.LeakyReLU()),
}


def program(weights, biases, activation=lambda x: x, likelihood=lambda o: dist.Normal(o, 0.3).to_event(1)):
    """A perceptron whose weights are sites, and a guide with the variance exp(-1) for each."""

    def model(x, y=None):
        for i, (loc, bias) in enumerate(zip(weights, biases, strict=True)):
            w = numpyro.sample(f"w{i}", dist.Normal(jnp.zeros_like(loc), 1.0).to_event(2))
            x = x @ w + bias
            x = activation(x) if i < len(weights) - 1 else x
        return numpyro.sample("y", likelihood(x), obs=y)

    def guide(x, y=None):
        for i, loc in enumerate(weights):
            numpyro.sample(f"w{i}", vd.DropoutNormal(loc, log_sigma2=-1.0).to_event(2))

    return model, guide


def layers(*sizes):
    keys = jax.random.split(KEY, len(sizes))
    return [jax.random.normal(k, pair) for k, *pair in zip(keys, sizes, sizes[1:], strict=False)], [
        jnp.linspace(-1.0, 1.0, n) for n in sizes[1:]
    ]


def moments(model, guide, x, **options):
    return vd.predictive_distribution(KEY, {}, model, guide, x, mode="moments", **options)["y"]


def test_one_linear_layer_is_exact():
    weights, biases = layers(4, 3)
    x = jax.random.normal(KEY, (5, 4))
    y = moments(*program(weights, biases), x)
    np.testing.assert_allclose(y.mean, x @ weights[0] + biases[0], rtol=1e-4, atol=1e-5)
    expected = jnp.square(x).sum(-1, keepdims=True) * math.exp(-1) * jnp.ones(3)
    np.testing.assert_allclose(y.epistemic_variance, expected, rtol=1e-4)
    np.testing.assert_allclose(y.aleatoric_variance, 0.09, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_two_linear_layers_are_exact(batch_size):
    """``Var y = sum over hidden h of s**2 * (E h)**2 + (loc**2 + s**2) * Var h``."""
    weights, biases = layers(4, 3, 2)
    x = jax.random.normal(KEY, (5, 4))
    y = moments(*program(weights, biases), x, batch_size=batch_size)
    hidden, s2 = x @ weights[0] + biases[0], math.exp(-1)
    spread = s2 * jnp.square(x).sum(-1)
    expected = s2 * jnp.square(hidden).sum(-1)[:, None] + spread[:, None] * (jnp.square(weights[1]) + s2).sum(0)
    np.testing.assert_allclose(y.mean, hidden @ weights[1] + biases[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.epistemic_variance, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_the_numbers_of_the_pyro_side(name):
    """Three layers, the same parameters: one pass on either side."""
    function, module = ACTIVATIONS[name]
    weights, biases = layers(3, 6, 6, 2)
    net = nn.Sequential(nn.Linear(3, 6), module, nn.Linear(6, 6), module, nn.Linear(6, 2))
    for layer, w, b in zip(net[::2], weights, biases, strict=True):
        layer.weight.data, layer.bias.data = (torch.tensor(np.asarray(a)) for a in (w.T, b))
    bnn = pyro_vd.BayesianModule(net, pyro.distributions.Normal(0.0, 1.0))

    def model(x):
        pyro.sample("y", pyro.distributions.Normal(bnn(x), 0.3).to_event(1))

    x = jax.random.normal(KEY, (4, 3)) / 2
    guide, inputs = AutoMeanField(bnn, init_log_sigma2=-1.0), torch.tensor(np.asarray(x))
    guide(inputs)
    theirs = pyro_vd.predictive_distribution(model, guide, inputs, mode="moments")["y"]
    ours = moments(*program(weights, biases, function), x)
    # The quadratures of either side differ: 2e-3 for the widest inputs here (elementwise.py of both).
    tolerance = 1e-4 if name == "relu" else 3e-3
    np.testing.assert_allclose(ours.mean, theirs.mean.numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(ours.epistemic_variance, theirs.epistemic_variance.numpy(), rtol=tolerance)


FUNCTIONS = {
    **{name: function for name, (function, _) in ACTIVATIONS.items()},
    "gelu by tanh": jax.nn.gelu,
    "relu6": jax.nn.relu6,
    "hard tanh": jax.nn.hard_tanh,
    "abs": jnp.abs,
    "clip": lambda x: jnp.clip(x, -0.5, 1.0),
    "silu by hand": lambda x: x * jax.nn.sigmoid(x),
    "with itself": lambda x: x * x - 2 * x,
    "with others": lambda x: x[:, :2] - 0.5 * x[:, 2:],
    "product": lambda x: x[:, :2] * x[:, 2:],
    "matrix": lambda x: x @ jnp.arange(8.0).reshape(4, 2),
    "mean": lambda x: x.mean(-1),
    "concatenate": lambda x: jnp.concatenate([x, jnp.ones((2, 1)), x[:, :1]], 1),
    "views": lambda x: x.reshape(2, 2, 2).transpose(2, 1, 0)[:, 0],
    "maximum": lambda x: jnp.maximum(x[:, :2], x[:, 2:]),
    "minimum of a constant": lambda x: jnp.minimum(x, 0.2),
    "max of two": lambda x: x.reshape(2, 2, 2).max(-1),
    "max pool of two": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2), (1, 2), ((0, 0), (0, 0))),
    "average pool": lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2), (1, 2), ((0, 0), (0, 0))) / 2,
    "masked": lambda x: jnp.where(jnp.array([True, False, False, True]), 0.5, x),
    "standardised": lambda x: (x - jnp.arange(4.0)) * jnp.array([1.0, 2.0, -1.0, 0.5]) + 1,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_of_a_function(name):
    """Against the function at 50,000 draws of its input, within standard errors, and the error of the quadrature."""
    function, number = FUNCTIONS[name], 50_000
    mean, deviation = jax.random.normal(KEY, (2, 4)), jnp.linspace(0.5, 1.5, 8).reshape(2, 4)
    result = quax.quaxify(function)(GaussianArray(mean, jnp.square(deviation), Pass(KEY, "error")))
    draws = jax.vmap(function)(mean + deviation * jax.random.normal(jax.random.key(1), (number, 2, 4)))
    spread = draws.std(0)
    assert result.shape == draws.shape[1:] == result.variance.shape
    kurtosis = (((draws - draws.mean(0)) / jnp.maximum(spread, 1e-9)) ** 4).mean(0)
    bound = standard_errors() * spread / math.sqrt(number) + 1e-3
    assert (jnp.abs(result.mean_value - draws.mean(0)) <= bound).all()
    assert (jnp.abs(jnp.sqrt(result.variance) - spread) <= bound * jnp.sqrt(1 + kurtosis)).all()


def test_heads():
    """Classes, and a scale that stays positive: 2,000 draws at the end of the pass against 5,000 of the weights."""
    weights, biases = layers(4, 3)
    x = jax.random.normal(KEY, (5, 4)) / 2
    for likelihood, quantity in (
        (lambda o: dist.Categorical(logits=o), lambda y: y.probs),
        (lambda o: dist.Bernoulli(logits=o).to_event(1), lambda y: y.probs),
        (lambda o: dist.Normal(o[:, 0], jax.nn.softplus(o[:, 1]) + 0.01), lambda y: y.variance),
    ):
        model, guide = program(weights, biases, likelihood=likelihood)
        y = moments(model, guide, x, num_samples=2000)
        by_draws = vd.predictive_distribution(KEY, {}, model, guide, x, num_samples=5000)["y"]
        assert y.num_samples == 2000 and type(y.draws) is type(by_draws.draws)
        np.testing.assert_allclose(quantity(y), quantity(by_draws), rtol=0.06, atol=0.01)


def test_an_unmodified_net():
    """A net of equinox through BayesianModule: its moments against draws of the weights."""
    net = eqx.nn.MLP(4, 2, 16, 1, key=KEY)
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    x = jax.random.normal(KEY, (6, 4))

    def model(x):
        numpyro.sample("y", dist.Normal(bnn(x), 0.3).to_event(1))

    def guide(x):
        for site, message in bnn.weight_messages().items():
            loc = message["value"]
            numpyro.sample(site, vd.DropoutNormal(loc, log_sigma2=-3.0).to_event(loc.ndim))

    params = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(x)
    params = {name: site["value"] for name, site in params.items() if site["type"] == "param"}
    options = {"mode": "moments", "num_samples": 100}
    y = vd.predictive_distribution(KEY, params, model, guide, x, **options)["y"]
    by_draws = vd.predictive_distribution(KEY, params, model, guide, x, num_samples=4000)["y"]
    np.testing.assert_allclose(y.stddev, by_draws.stddev, rtol=0.1)
    assert (jnp.abs(y.mean - by_draws.mean) < 0.2 * by_draws.stddev).all()


def softmax(x):
    weights = jnp.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_refusals():
    weights, biases = layers(4, 5, 2)
    x = jax.random.normal(KEY, (3, 4))
    odd = program(weights, biases, jnp.sort)
    with pytest.raises(ValueError, match=r'input, got sort on shapes \[\(3, 5\)\]; write on_unknown="sample"'):
        moments(*odd, x)
    for options in ({}, {"on_unknown": "sample"}):
        with pytest.raises(ValueError, match=r"got div of two Gaussians of shapes \(3, 5\) and \(3, 1\)"):
            moments(*program(weights, biases, softmax), x, **options)
    odd = program(weights, biases, jax.jit(softmax))
    y = moments(*odd, x, num_samples=300, on_unknown="sample")
    assert y.num_samples == 300 and len(jnp.unique(y.draws.base_dist.loc, axis=0)) == 300
    by_draws = vd.predictive_distribution(KEY, {}, *odd, x, num_samples=3000)["y"]
    np.testing.assert_allclose(y.stddev, by_draws.stddev, rtol=0.2)
    model, guide = program(weights, biases)
    with pytest.raises(ValueError, match="site 'y': expected a model that returns what it predicts"):
        moments(lambda x: model(x) + 1, guide, x)
    with pytest.raises(ValueError, match="site 'y': expected a model that returns what it predicts"):
        moments(lambda x: jnp.sum(model(x)), guide, x)
    with pytest.raises(ValueError, match="on_unknown: expected 'error' or 'sample', got 'draw'"):
        moments(model, guide, x, on_unknown="draw")
    with pytest.raises(ValueError, match="on_unknown: expected mode='moments'"):
        vd.predictive_distribution(KEY, {}, model, guide, x, on_unknown="sample")

    def shares(x):
        for i, loc in enumerate(weights):
            numpyro.sample(f"w{i}", vd.LowRankNormal(loc, -1.0, jnp.ones((1, *loc.shape))))

    with pytest.raises(ValueError, match="site 'w0': expected a weight whose elements are independent Gaussians"):
        moments(model, shares, x)
    drawn = moments(model, shares, x, on_unknown="sample", num_samples=20)
    assert drawn.num_samples == 20 and (drawn.epistemic_variance > 0).all()
