"""One training step of LeNet-300-100 in Pyro, in NumPyro, and written by hand in JAX, on the same batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import _data
import _numpyro_training
import _training
import jax
import jax.numpy as jnp
import optax
import pyro
import torch
from numpyro.infer import SVI

import pyro_vd as vd
import pyro_vd.numpyro as nvd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.guides.numpyro import AutoSparseVD as NumPyroSparseVD

BATCH = 100


def measured(dataset: str, data_dir: str, hidden: Sequence[int], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each program: medians of rounds of 20 steps, taken in turn."""
    steps = programs(dataset, data_dir, hidden)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(20):
                step()
            times[name].append((time.perf_counter() - start) / 20 * 1000)
    return {name: median(values) for name, values in times.items()}


def programs(dataset: str, data_dir: str, hidden: Sequence[int]) -> dict[str, Callable[[], object]]:
    """A training step of each program, by name, ready to be called again and again."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    data = _data.load(dataset, data_dir)
    sizes = [data.x_train.shape[1], *hidden, 10]
    net = _training.mlp(sizes)
    size = len(data.x_train)
    x, y = data.x_train[:BATCH], data.y_train[:BATCH]
    arrays = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    return {
        "Pyro": _pyro(net, size, x, y),
        "NumPyro": _numpyro(net, size, *arrays),
        "JAX by hand": _by_hand(sizes, size, *arrays),
    }


def _pyro(net: torch.nn.Sequential, size: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    model = _training.classifier(vd.BayesianModule(net, vd.ImproperLogUniform()), size)
    guide = AutoSparseVD(model)
    guide(x, y)
    loss = vd.TraceVD_ELBO()(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    return step


def _numpyro(net: torch.nn.Sequential, size: int, x: jax.Array, y: jax.Array) -> Callable[[], object]:
    bnn = nvd.BayesianModule(_numpyro_training.mlp(net), nvd.ImproperLogUniform())
    model = _numpyro_training.classifier(bnn, size)
    svi = SVI(model, NumPyroSparseVD(model), optax.adam(1e-3), nvd.TraceVD_ELBO())
    state = svi.init(jax.random.key(0), x, y)
    return _repeated(jax.jit(svi.update), state, x, y)


def _by_hand(sizes: Sequence[int], size: int, x: jax.Array, y: jax.Array) -> Callable[[], object]:
    """Local reparameterization as one writes it in JAX, without any library but optax."""
    optimizer = optax.adam(1e-3)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    params: Any = [
        {"loc": jax.random.normal(key, (a, b)) / a**0.5, "log_sigma2": jnp.full((a, b), -10.0), "bias": jnp.zeros(b)}
        for key, a, b in zip(keys[1:], sizes[:-1], sizes[1:], strict=True)
    ]

    def loss(params: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        kl = 0.0
        for i, layer in enumerate(params):
            mean = x @ layer["loc"] + layer["bias"]
            variance = (x * x) @ jnp.exp(layer["log_sigma2"])
            noise = jax.random.normal(jax.random.fold_in(key, i), mean.shape)
            x = mean + jnp.sqrt(variance + 1e-8) * noise
            x = jax.nn.relu(x) if i + 1 < len(params) else x
            log_alpha = layer["log_sigma2"] - 2 * jnp.log(jnp.abs(layer["loc"]) + 1e-8)
            formula = 0.63576 * jax.nn.sigmoid(-1.8732 - 1.48695 * log_alpha) + 0.5 * jax.nn.softplus(-log_alpha)
            kl = kl + formula.sum()
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)
        return -size / len(y) * log_probs.sum() + kl

    @jax.jit
    def update(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, moments, key = state
        key, now = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(params, now, x, y)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments, key), value

    return _repeated(update, (params, optimizer.init(params), keys[0]), x, y)


def _repeated(update: Callable, state: Any, *batch: jax.Array) -> Callable[[], object]:
    states = [state]
    for _ in range(3):  # compiled, for the state it begins with and for those it returns
        states[0] = jax.block_until_ready(update(states[0], *batch))[0]

    def step() -> None:
        states[0] = jax.block_until_ready(update(states[0], *batch))[0]

    return step
