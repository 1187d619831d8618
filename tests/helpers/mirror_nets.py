"""Nets of the three libraries of JAX, and a classifier of each; shared by the tests of the NumPyro side."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen, nnx
from numpyro.infer import SVI

import helpers.mirror_compiling  # noqa: F401
import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoSparseVD

LIBRARIES = ("linen", "nnx", "equinox")
KEY = jax.random.key(0)


def pool(x):
    """Means of squares of 2 x 2 positions of (examples, height, width, channels)."""
    return linen.avg_pool(x, (2, 2), strides=(2, 2))


class LinenPerceptron(linen.Module):
    sizes: tuple[int, ...]

    @linen.compact
    def __call__(self, x):
        for size in self.sizes[1:-1]:
            x = linen.relu(linen.Dense(size)(x))
        return linen.Dense(self.sizes[-1])(x)


class LinenLeNet5(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = pool(linen.relu(linen.Conv(4, (5, 5), padding="VALID")(x)))
        x = pool(linen.relu(linen.Conv(6, (3, 3), padding="VALID")(x)))
        x = linen.relu(linen.Dense(16)(x.reshape(len(x), -1)))
        return linen.Dense(10)(x)


class NnxPerceptron(nnx.Module):
    def __init__(self, sizes, rngs):
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.dense = nnx.List([nnx.Linear(inputs, outputs, rngs=rngs) for inputs, outputs in pairs])

    def __call__(self, x):
        for layer in self.dense[:-1]:
            x = nnx.relu(layer(x))
        return self.dense[-1](x)


class NnxLeNet5(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 4, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, (3, 3), padding="VALID", rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(24, 16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = pool(nnx.relu(self.conv2(pool(nnx.relu(self.conv1(x))))))
        return self.fc2(nnx.relu(self.fc1(x.reshape(len(x), -1))))


class EquinoxLeNet5(eqx.Module):
    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.conv1, self.conv2 = eqx.nn.Conv2d(1, 4, 5, key=keys[0]), eqx.nn.Conv2d(4, 6, 3, key=keys[1])
        self.fc1, self.fc2 = eqx.nn.Linear(24, 16, key=keys[2]), eqx.nn.Linear(16, 10, key=keys[3])

    def __call__(self, x):
        average = eqx.nn.AvgPool2d(2, 2)
        x = average(jax.nn.relu(self.conv2(average(jax.nn.relu(self.conv1(jnp.moveaxis(x, -1, 0)))))))
        return self.fc2(jax.nn.relu(self.fc1(x.reshape(-1))))


def perceptron(library, sizes=(64, 300, 100, 10)):
    """LeNet-300-100, or of other sizes."""
    if library == "linen":
        net = LinenPerceptron(tuple(sizes))
        return net.bind(jax.jit(net.init)(KEY, jnp.ones((1, sizes[0]))))
    if library == "nnx":
        return NnxPerceptron(sizes, nnx.Rngs(0))
    layers = []
    for key, inputs, outputs in zip(jax.random.split(KEY, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True):
        layers += [eqx.nn.Linear(inputs, outputs, key=key), eqx.nn.Lambda(jax.nn.relu)]
    return eqx.nn.Sequential(layers[:-1])


def lenet5(library):
    """A small LeNet-5 for images of 16 x 16 pixels, (examples, 16, 16, 1)."""
    if library == "linen":
        net = LinenLeNet5()
        return net.bind(jax.jit(net.init)(KEY, jnp.ones((1, 16, 16, 1))))
    return NnxLeNet5(nnx.Rngs(0)) if library == "nnx" else EquinoxLeNet5(KEY)


def classifier(bnn, dataset_size=100):
    """A NumPyro model: a categorical likelihood on the logits of ``bnn``."""

    def model(x, y=None, **options):
        logits = bnn(x, **options)
        with vd.data_plate(dataset_size, len(x)):
            return numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def program(net, guide=AutoSparseVD, prior=None, lr=1e-3, elbo=None, **options):
    """BayesianModule, model, guide and SVI for a net."""
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform() if prior is None else prior)
    model = classifier(bnn)
    guide = guide(model, **options)
    return bnn, model, guide, SVI(model, guide, optax.adam(lr), elbo or vd.TraceVD_ELBO())


def images(rows=8, side=None, classes=10):
    """Images and labels: rows of 64 pixels, or (rows, side, side, 1)."""
    shape = (rows, 64) if side is None else (rows, side, side, 1)
    return jax.random.normal(jax.random.key(1), shape), jnp.arange(rows) % classes
