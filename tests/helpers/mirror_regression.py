"""A small regression on the NumPyro side, with each library of nets and each kind of plate; shared by its tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from pyro_vd.guides.numpyro import AutoMeanField

KEY = jax.random.key(0)
N = 12
X = jax.random.normal(jax.random.key(1), (N, 3))
Y = X[:, 0]


def net(library: str) -> Any:
    """A linear layer of 3 inputs and 1 output: of linen bound or not ("unbound"), nnx, or equinox."""
    if library in ("linen", "unbound"):
        layer = linen.Dense(1)
        return layer if library == "unbound" else layer.bind(layer.init(KEY, X))
    return nnx.Linear(3, 1, rngs=nnx.Rngs(0)) if library == "nnx" else eqx.nn.Linear(3, 1, key=KEY)


def weight_site(library: str) -> str:
    return "net.weight" if library == "equinox" else "net.kernel"


def likelihood(mean: Any, scale: Any, y: Any, plate: str) -> Any:
    """The likelihood in a plate of one kind; a subsampling one takes the examples of its index."""
    if plate == "data_plate":
        with vd.data_plate(40, len(mean)):
            return numpyro.sample("y", dist.Normal(mean, scale), obs=y)
    size = {"plate": None, "subsampling": 5}[plate]
    with numpyro.plate("N", len(mean), subsample_size=size) as index:
        return numpyro.sample("y", dist.Normal(mean[index], scale), obs=None if y is None else y[index])


def regression(
    library: str = "equinox",
    guide: Callable = AutoMeanField,
    plate: str = "data_plate",
    prior: Any = None,
    noise: Any = None,
    elbo: Any = None,
    **options: Any,
) -> tuple[Any, Any, Any, SVI]:
    """BayesianModule, model, guide and SVI; ``noise`` is the prior of a noise scale."""
    bnn = vd.BayesianModule(net(library), dist.Normal(0.0, 1.0) if prior is None else prior)

    def model(x: Any, y: Any = None) -> Any:
        scale = 0.5 if noise is None else numpyro.sample("scale", noise)
        return likelihood(bnn(x).squeeze(-1), scale, y, plate)

    made = guide(model, **options)
    return bnn, model, made, SVI(model, made, optax.adam(0.01), elbo or vd.TraceVD_ELBO())


def same(first: dict, second: dict) -> bool:
    """Whether two sets of parameters are equal."""
    return first.keys() == second.keys() and all(jnp.array_equal(first[name], second[name]) for name in first)
