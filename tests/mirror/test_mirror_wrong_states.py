"""The state of a net among the parameters: another than the net's is an error that shows both."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro import handlers

import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY, X
from pyro_vd.guides.numpyro import AutoMeanField

pytestmark = pytest.mark.slow  # runs many programs


class Nnx(nnx.Module):
    def __init__(self):
        self.linear, self.norm = nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(self.norm(x))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.BatchNorm(use_running_average=False)(x))


class Equinox(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.linear = eqx.nn.Linear(3, 1, key=KEY)
        self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="ema")

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.linear(x), state


NETS = {
    "nnx": Nnx,
    "linen": lambda: Linen().bind(Linen().init(KEY, X)),
    "equinox": lambda: eqx.nn.make_with_state(Equinox)(),
}
WRONG = {
    "empty": lambda state: {},
    "no values": lambda state: {"values": {}},
    "another key": lambda state: {"value": state["values"]},
    "the values alone": lambda state: state["values"],
    "an array": lambda state: jnp.ones(3),
    "other shapes": lambda state: jax.tree.map(lambda a: jnp.zeros(7, a.dtype), state),
    "a list": lambda state: [state],
}


@pytest.mark.parametrize("library", NETS)
def test_a_wrong_state_is_refused_by_every_reader(library):
    bnn = vd.BayesianModule(NETS[library](), dist.Normal(0.0, 1.0))
    guide = AutoMeanField(bnn)
    traces = [handlers.trace(handlers.seed(program, KEY)).get_trace(X) for program in (bnn, guide)]
    given = {name: site["value"] for trace in traces for name, site in trace.items() if site["type"] == "param"}
    state = {"values": bnn.adapted.state}

    def loss(params):
        return vd.TraceVD_ELBO().loss_with_mutable_state(KEY, params, bnn, guide, X)["mutable_state"]

    def pruned(params):
        return vd.prune(bnn, guide, params=params)

    for wrong in WRONG.values():
        for read in (loss, pruned):
            with pytest.raises(ValueError, match="site 'net.state': expected the state of this net.*got .*mutable_st"):
                read({**given, "net.state": wrong(state)})
    after = loss({**given, "net.state": state})  # not compiled
    assert jax.tree.map(jnp.shape, after) == {"net.state": jax.tree.map(jnp.shape, state)}
    pruned({**given, "net.state": state})
