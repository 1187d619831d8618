"""Nets of flax.linen, flax.nnx and equinox as they are: their state, their dropout, and how they train."""

from __future__ import annotations

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro import handlers

import pyro_vd.numpyro as vd
from helpers.mirror_nets import KEY, LIBRARIES, images, lenet5, perceptron, program

pytestmark = pytest.mark.slow  # compiles many programs

X = jax.random.normal(KEY, (5, 4))


class BatchNormLinen(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Dense(3)(x))
        return linen.Dense(2)(x)


class BatchNormNnx(nnx.Module):
    def __init__(self, rngs):
        self.fc1, self.fc2 = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.fc2(self.norm(self.fc1(x)))


class BatchNormEquinox(eqx.Module):
    fc1: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    fc2: eqx.nn.Linear

    def __init__(self, key):
        self.fc1, self.fc2 = eqx.nn.Linear(4, 3, key=key), eqx.nn.Linear(3, 2, key=key)
        self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="ema", momentum=0.9)

    def __call__(self, x, state):
        x, state = self.norm(self.fc1(x), state)
        return self.fc2(x), state


def batch_norm(library):
    if library == "linen":
        return BatchNormLinen()
    return BatchNormNnx(nnx.Rngs(0)) if library == "nnx" else eqx.nn.make_with_state(BatchNormEquinox)(KEY)


@pytest.mark.parametrize("library", LIBRARIES)
def test_state_is_kept_by_training(library):
    """BatchNorm's averages after svi.init and two steps are those of the exact recursion, and prediction needs them."""
    _, model, guide, svi = program(batch_norm(library), lr=1e-9, init_log_sigma2=-60.0)
    x = 3.0 + X
    state = svi.init(KEY, x, jnp.zeros(5, int))
    params = svi.get_params(state)
    (name,) = state.mutable_state
    assert name == "net.state"
    kernel, bias = params[f"auto.locs.net.{_first(library)}"], params[f"net.{_first(library)[:-6]}bias"]
    hidden = x @ (kernel.T if library == "equinox" else kernel) + bias
    update = jax.jit(svi.update)
    for _ in range(2):
        state, _ = update(state, x, jnp.zeros(5, int))
    averages = [a for a in jax.tree.leaves(state.mutable_state) if a.shape == (3,)]
    if library != "equinox":  # whose first step sets the average
        np.testing.assert_allclose(averages[0], (1 - 0.9**3) * hidden.mean(0), rtol=1e-4)
    else:
        np.testing.assert_allclose(averages[0], hidden.mean(0), rtol=1e-4)
    trained = {**svi.get_params(state), **state.mutable_state}
    drawn = vd.posterior_predictive(KEY, trained, model, guide, x, num_samples=2)["y"]
    assert drawn.shape == (2, 5)
    with pytest.raises(
        ValueError, match="expected the state of the net beside its parameters.*svi_state.mutable_state"
    ):
        vd.posterior_predictive(KEY, svi.get_params(state), model, guide, x, num_samples=2)
    with pytest.raises(ValueError, match="site 'net.state': expected the state of the net beside its parameters"):
        svi.evaluate(state, x, jnp.zeros(5, int))


def _first(library):
    return {"linen": "Dense_0.kernel", "nnx": "fc1.kernel", "equinox": "fc1.weight"}[library]


def test_linen_nets_are_called_with_their_own_keywords():
    _, model, guide, svi = program(BatchNormLinen())
    state = svi.init(KEY, X, jnp.zeros(5, int))
    params = {**svi.get_params(state), **state.mutable_state}
    evaluated, _ = (
        svi.loss.loss_with_mutable_state(KEY, params, model, guide, X, jnp.zeros(5, int), train=train)["mutable_state"]
        for train in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, evaluated, state.mutable_state)


def test_an_update_of_the_state_that_is_not_finite_is_not_kept():
    _, model, guide, svi = program(BatchNormNnx(nnx.Rngs(0)))
    state = svi.init(KEY, X, jnp.zeros(5, int))
    after, loss = jax.jit(svi.update)(state, X.at[0, 0].set(jnp.nan), jnp.zeros(5, int))
    assert not jnp.isfinite(loss)
    jax.tree.map(np.testing.assert_array_equal, after.mutable_state, state.mutable_state)
    after, _ = jax.jit(svi.update)(state, X, jnp.zeros(5, int))
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after[1], state[1])), strict=True))


def test_nets_without_their_state():
    with pytest.raises(ValueError, match=r"expected the state of BatchNormEquinox beside it.*eqx.nn.make_with_state"):
        vd.BayesianModule(BatchNormEquinox(KEY), dist.Normal(0.0, 1.0))
    variables = BatchNormLinen().init(KEY, X)
    net = BatchNormLinen().bind({"params": variables["params"]})
    with pytest.raises(ValueError, match=r"expected a net bound to all its variables, got none of \['batch_stats'\]"):
        handlers.seed(vd.BayesianModule(net, dist.Normal(0.0, 1.0)), 0)(X)


class DropoutNnx(nnx.Module):
    def __init__(self, rngs):
        self.fc, self.dropout = nnx.Linear(4, 200, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.fc(x))


@pytest.mark.parametrize("net", [
    linen.Sequential([linen.Dense(200), linen.Dropout(0.5, deterministic=False)]),
    DropoutNnx(nnx.Rngs(0)),
], ids=["linen", "nnx"])  # fmt: skip
def test_dropout_of_a_net_has_its_key_from_the_model(net):
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    weight = handlers.trace(handlers.seed(bnn, 0)).get_trace(X)
    values = {name: site["value"] for name, site in weight.items() if site["type"] == "sample"}
    first, again, other = (handlers.seed(handlers.substitute(bnn, values), seed)(X) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert abs((first == 0).mean() - 0.5) < 0.1  # of 1000 fair coins: 6 standard errors


@pytest.mark.parametrize("shape", ["LeNet-300-100", "LeNet-5"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_unmodified_nets_train_under_lrt_without_retracing(library, shape, recwarn):
    """The loss falls, every weight moves, a step is traced once, and no operation falls back to a draw."""
    net = perceptron(library) if shape == "LeNet-300-100" else lenet5(library)
    x, y = images(20, None if shape == "LeNet-300-100" else 16)
    _, _, guide, svi = program(net, lr=3e-3, elbo=vd.TraceVD_ELBO(kl_weight=0.0, strict=True))
    state = jax.jit(svi.init)(KEY, x, y)
    before = svi.get_params(state)
    traced = []

    @jax.jit
    def update(state, x, y):
        traced.append(1)
        return svi.update(state, x, y)

    losses = []
    for _ in range(80):
        state, loss = update(state, x, y)
        losses.append(float(loss))
    assert len(traced) == 1
    assert np.mean(losses[-5:]) < 0.5 * losses[0], losses
    after = svi.get_params(state)
    assert all((after[name] != before[name]).any() for name in before), guide.weight_sites
    assert not [w for w in recwarn if "drawn once" in str(w.message)]


def test_svi_run_update_and_scan_are_the_same_training():
    """``svi.run``, a loop of ``svi.update`` under jit, and ``lax.scan`` over the batches of an epoch."""
    x, y = images(8)
    _, _, _, svi = program(perceptron("nnx", (64, 16, 10)))
    start = jax.jit(svi.init)(KEY, x, y)
    state, update = start, jax.jit(svi.update)
    losses = []
    for _ in range(5):
        state, loss = update(state, x, y)
        losses.append(loss)
    batches = jax.tree.map(lambda a: jnp.stack([a] * 5), (x, y))
    scanned, scanned_losses = jax.lax.scan(lambda state, batch: svi.update(state, *batch), start, batches)
    ran = svi.run(KEY, 5, x, y, init_state=start, progress_bar=False)
    np.testing.assert_allclose(scanned_losses, losses, rtol=1e-4)
    np.testing.assert_allclose(ran.losses, losses, rtol=1e-4)
    for name, value in svi.get_params(state).items():
        np.testing.assert_allclose(svi.get_params(scanned)[name], value, rtol=1e-3, atol=1e-5)
    assert np.std(losses) > 0


SHARDED = """
import jax, jax.numpy as jnp, sys
sys.path.insert(0, "tests")
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from helpers.mirror_nets import KEY, images, perceptron, program

assert jax.device_count() == 2
_, _, _, svi = program(perceptron("linen", (64, 16, 10)))
x, y = images(8)
mesh = Mesh(jax.devices(), ("data",))
split = lambda a: jax.device_put(a, NamedSharding(mesh, P("data")))
update = jax.jit(svi.update)
def train(x, y):
    state, losses = svi.init(KEY, *images(8)), []
    for _ in range(3):
        state, loss = update(state, x, y)
        losses.append(float(loss))
    return losses, svi.get_params(state)
alone, params = train(x, y)
both, sharded = train(split(x), split(y))
assert len(split(x).sharding.device_set) == 2
for a, b in zip(alone, both):
    assert abs(a - b) <= 1e-4 * abs(a), (alone, both)
for name in params:
    assert jnp.allclose(params[name], sharded[name], rtol=1e-3, atol=1e-5), name
print("same", alone[0] != alone[1])
"""


def test_two_devices_have_the_loss_of_one_for_the_same_noise():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    }
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stdout) == (0, "same True\n"), done.stderr[-2000:]
