"""The training loop of ``_training.py`` in NumPyro: the guide of a torch perceptron, trained by JAX from its start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import _training
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import torch
from _data import Data
from flax import linen
from numpyro.infer import SVI

import pyro_vd.numpyro as vd
from pyro_vd import TraceVD_ELBO
from pyro_vd.guides.numpyro import AutoSparseVD


class Program(NamedTuple):
    """A program trained in NumPyro."""

    bnn: vd.BayesianModule
    model: Callable
    guide: AutoSparseVD
    svi: SVI
    params: dict[str, Any]


def mlp(net: torch.nn.Sequential) -> linen.Sequential:
    """The flax net with the layers of ``net``, Linear and ReLU."""
    return linen.Sequential([
        linen.Dense(layer.out_features) if isinstance(layer, torch.nn.Linear) else linen.relu for layer in net
    ])  # fmt: skip


def classifier(bnn: vd.BayesianModule, dataset_size: int) -> Callable[..., jax.Array]:
    """The NumPyro model: a categorical likelihood on the logits of ``bnn``."""

    def model(x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        logits = bnn(x)
        with vd.data_plate(dataset_size, len(x)):
            return numpyro.sample("y", dist.Categorical(logits=logits), obs=y)  # type: ignore

    return model


def adam(guide: AutoSparseVD, lr: Any, lr_ratio: float) -> optax.GradientTransformation:
    """Adam with a learning rate of its own for the noise parameters; means are zeroed where the guide says so."""

    def kinds(params: dict[str, Any]) -> dict[str, str]:
        return {name: "noise" if name.startswith("auto.log_") else "means" for name in params}

    rates = {"means": optax.adam(lr), "noise": optax.adam(lambda step: lr_ratio * lr(step))}
    return optax.chain(optax.multi_transform(rates, kinds), guide.projection())  # type: ignore


def train(
    net: torch.nn.Sequential,
    guide: Any,
    data: Data,
    *,
    epochs: int,
    lr: float,
    lr_ratio: float = 1.0,
    decay_from: float = 0.5,
    kl_weight: Callable[[float], float] = lambda done: 1.0,
    batch: int = 100,
    seed: int = 0,
    progress: _training.Progress = lambda epoch, elbo: None,
) -> Program:
    """Train the Pyro guide of a perceptron in NumPyro; its parameters are those of NumPyro after every epoch.

    The arguments are those of ``_training.train``, with the net for the model. An epoch is one call of JAX:
    ``lax.scan`` over its minibatches, with the weight of the KL of each.
    """
    x, y = (jnp.asarray(tensor.cpu().numpy()) for tensor in (data.x_train, data.y_train))
    size = len(x)
    steps = -(-size // batch)
    with torch.no_grad():
        guide(data.x_train[:batch], data.y_train[:batch])  # makes its parameters
    bnn = vd.BayesianModule(mlp(net), vd.ImproperLogUniform())
    mirror = AutoSparseVD(classifier(bnn, size), init_log_sigma2=guide.init_log_sigma2, kl=guide.kl)
    rate = lambda step: lr * jnp.minimum(1.0, (1 - step // steps / epochs) / (1 - decay_from))  # noqa: E731
    elbo = vd.TraceVD_ELBO()
    svi = SVI(mirror.model, mirror, adam(mirror, rate, lr_ratio), elbo)
    state = svi.init(jax.random.key(seed), x[:batch], y[:batch], init_params=_jax(vd.to_numpyro(guide)))

    def compiled() -> Callable:
        def step(state: Any, inputs: tuple) -> tuple[Any, jax.Array]:
            index, weight = inputs
            return svi.update(state, x[index], y[index], kl_weight=weight)

        @jax.jit
        def epoch(state: Any, order: jax.Array, weights: jax.Array) -> Any:
            full = size - size % batch
            state, _ = jax.lax.scan(step, state, (order[:full].reshape(-1, batch), weights[: full // batch]))
            return state if full == size else step(state, (order[full:], weights[-1]))[0]

        return epoch

    epoch_of, params = compiled(), svi.get_params(state)
    for epoch in range(epochs):
        if mirror.zero_above != guide.zero_above:  # looked at when a step is compiled
            mirror.zero_above, epoch_of = guide.zero_above, compiled()
        weights = jnp.array([kl_weight((epoch + i * batch / size) / epochs) for i in range(steps)], x.dtype)
        state = epoch_of(state, jnp.asarray(torch.randperm(size).numpy()), weights)
        params = jax.block_until_ready(svi.get_params(state))
        vd.from_numpyro(params, guide)
        progress(epoch, TraceVD_ELBO())
    mirror.zero_above = guide.zero_above
    return Program(bnn, mirror.model, mirror, svi, params)


def nll(program: Program, data: Data, seed: int = 0, num_samples: int = 20) -> float:
    """Held-out negative log-likelihood of posterior samples, nats per example."""
    x, y = (jnp.asarray(tensor.cpu().numpy()) for tensor in (data.x_test, data.y_test))

    def logits(x: jax.Array) -> None:
        numpyro.deterministic("logits", program.bnn(x))

    key = jax.random.key(1000 + seed)
    draws = vd.posterior_predictive(key, program.params, logits, program.guide, x, num_samples=num_samples)
    log_probs = jax.nn.logsumexp(jax.nn.log_softmax(draws["logits"]), 0) - jnp.log(num_samples)
    return float(-jnp.take_along_axis(log_probs, y[:, None], 1).mean())


def _jax(params: dict[str, Any]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in params.items()}
