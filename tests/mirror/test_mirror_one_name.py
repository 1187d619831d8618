"""NumPyro: two BayesianModules of one name, or one that is called twice, are errors that advise another name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from numpyro import handlers
from numpyro.infer import SVI

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField

pytestmark = pytest.mark.slow  # compiles
KEY, X = jax.random.key(0), jnp.ones((4, 3))
NETS = {
    "unbound": lambda size: linen.Dense(size),
    "bound": lambda size: (layer := linen.Dense(size)).bind(layer.init(KEY, X)),
    "nnx": lambda size: nnx.Linear(3, size, rngs=nnx.Rngs(0)),
}


def program(net, sizes, name="net"):
    modules = [vd.BayesianModule(NETS[net](size), dist.Normal(0.0, 1.0), name=n) for size, n in sizes]

    def model(x, y=None):
        mean = sum(module(x).sum(-1) for module in modules)
        with vd.data_plate(4, len(x)):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model


def calls(model):
    guide = AutoMeanField(model)
    svi = SVI(model, guide, optax.adam(0.1), vd.TraceVD_ELBO())
    by_hand = lambda x, y=None: numpyro.sample("net.kernel", dist.Normal(jnp.zeros((3, 3)), 1.0).to_event(2))  # noqa: E731
    return {
        "guide": lambda: handlers.seed(guide, 0)(X, jnp.zeros(4)),
        "init": lambda: svi.init(KEY, X, jnp.zeros(4)),
        "model": lambda: handlers.trace(handlers.seed(model, 0)).get_trace(X, jnp.zeros(4)),
        "loss": lambda: vd.TraceVD_ELBO().loss(KEY, {}, model, by_hand, X, jnp.zeros(4)),
    }


@pytest.mark.parametrize(("net", "sizes"), [("unbound", (3, 3)), ("bound", (3, 3)), ("bound", (3, 5)), ("nnx", (3, 5))])
def test_two_modules_of_one_name(net, sizes):
    model = program(net, [(size, "net") for size in sizes])
    for call in calls(model).values():
        with pytest.raises(ValueError, match="name=|shape"):
            call()
    if net != "unbound":
        with pytest.raises(ValueError, match="site 'net.kernel': expected every BayesianModule .* name=..."):
            _ = AutoMeanField(model).weight_sites


def test_names_that_differ_are_taken_and_a_second_call_is_named():
    model = program("bound", [(3, "one"), (5, "two")])
    assert AutoMeanField(model).weight_sites == ("one.kernel", "two.kernel")
    bnn = vd.BayesianModule(NETS["bound"](3), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="site 'net.kernel': expected .* got a second call of 'net'; .*name="):
        handlers.trace(handlers.seed(lambda: bnn(bnn(X)), 0)).get_trace()
