"""The programs of ``benchmark.py`` in JAX: the training step of ``_handwritten.py``, and a NumPyro model's.

Both start from the weights of a PyTorch net, so that every program of the benchmark starts at the same loss.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from _handwritten import K1, K2, K3
from jax.example_libraries.optimizers import adam

Step = Callable[[Any, Any], Any]


def handwritten(weights: list[Any], biases: list[Any], dataset_size: int, lr: float) -> Step:
    """A jitted step of Adam on the negative ELBO; returns the loss."""
    layers = [
        {"loc": jnp.array(w), "log_sigma2": jnp.full(w.shape, -10.0), "bias": jnp.array(b)}
        for w, b in zip(weights, biases, strict=True)
    ]
    initial, update, get = adam(lr)

    def loss(layers, key, x, y):
        log_probs = jax.nn.log_softmax(forward(layers, key, x))
        nll = -jnp.take_along_axis(log_probs, y[:, None], 1).mean()
        return dataset_size * nll + sum(kl(layer) for layer in layers)

    def step(i, state, key, x, y):
        key, noise = jax.random.split(key)
        value, gradients = jax.value_and_grad(loss)(get(state), noise, x, y)
        return i + 1, update(i, gradients, state), key, value

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    carried = (jnp.zeros((), int), initial(layers), jax.random.key(0))

    def take(x, y):
        nonlocal carried
        *carried, value = compiled(*carried, x, y)
        return value

    return take


def numpyro_step(weights: list[Any], biases: list[Any], dataset_size: int, lr: float) -> Step:
    """``jax.jit(svi.update)`` of a NumPyro model on an equinox net."""
    import numpyro

    vd: Any = import_module("pyro_vd.numpyro")
    guides: Any = import_module("pyro_vd.guides.numpyro")
    bnn = vd.BayesianModule(equinox_net(weights, biases), vd.ImproperLogUniform())

    def model(x, y=None):
        likelihood: Any = numpyro.distributions.Categorical(logits=bnn(x))
        with vd.data_plate(dataset_size, len(x)):
            numpyro.sample("y", likelihood, obs=y)

    svi = numpyro.infer.SVI(model, guides.AutoSparseVD(model), numpyro.optim.Adam(lr), vd.TraceVD_ELBO())
    update: Any = jax.jit(svi.update, donate_argnums=0)
    state: Any = None

    def take(x, y):
        nonlocal state
        if state is None:
            state = svi.init(jax.random.key(0), x, y)
        state, value = update(state, x, y)
        return value

    return take


def equinox_net(weights: list[Any], biases: list[Any]) -> Any:
    import equinox as eqx

    key = jax.random.key(0)
    relu = eqx.nn.Lambda(jax.nn.relu)
    layers: list[Any] = []
    for weight in weights:
        outputs, inputs, *kernel = weight.shape
        if kernel:
            layers += [eqx.nn.Conv2d(inputs, outputs, kernel, key=key), relu, eqx.nn.MaxPool2d(2, 2)]
        else:
            layers += [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(inputs, outputs, key=key), relu]
    net = eqx.nn.Sequential(layers[:-1])
    arrays, functions = eqx.partition(net, eqx.is_array)
    values = iter(array for pair in zip(weights, biases, strict=True) for array in pair)
    return eqx.combine(jax.tree.map(lambda leaf: jnp.array(next(values)).reshape(leaf.shape), arrays), functions)


def forward(layers, key, x):
    for layer, noise in zip(layers, jax.random.split(key, len(layers)), strict=True):
        bias = layer["bias"][:, None, None] if layer["loc"].ndim == 4 else layer["bias"]
        mean = linear(x, layer["loc"]) + bias
        variance = linear(x * x, jnp.exp(layer["log_sigma2"]))
        x = mean + jnp.sqrt(variance + 1e-16) * jax.random.normal(noise, mean.shape)
        x = jax.nn.relu(x) if layer is not layers[-1] else x
        x = pooled(x) if x.ndim == 4 else x
    return x


def linear(x, weight):
    if weight.ndim == 4:
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "VALID")
    return x.reshape(len(x), -1) @ weight.T


def pooled(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def kl(layer):
    log_alpha = layer["log_sigma2"] - 2 * jnp.log(jnp.abs(layer["loc"]) + 1e-8)
    return (K1 * jax.nn.sigmoid(-K2 - K3 * log_alpha) + 0.5 * jax.nn.softplus(-log_alpha)).sum()
