"""The state of a net (BatchNorm's averages) changes in steps that succeed, and in no prediction or report."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from numpyro.infer import SVI

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField

pytestmark = pytest.mark.slow  # compiles many programs

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (6, 3)) + 1.0, jnp.ones((6, 2))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.BatchNorm(use_running_average=False)(linen.Dense(4)(x)))


class NnxNet(nnx.Module):
    def __init__(self):
        self.a, self.b = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.b(self.norm(self.a(x)))


class EquinoxNet(eqx.Module):
    a: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    b: eqx.nn.Linear

    def __init__(self, key):
        self.a, self.b = eqx.nn.Linear(3, 4, key=key), eqx.nn.Linear(4, 2, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.a(x), state)
        return self.b(x), state


NETS = {
    "linen": lambda: LinenNet().bind(LinenNet().init(KEY, X)),
    "nnx": NnxNet,
    "equinox": lambda: eqx.nn.make_with_state(EquinoxNet)(KEY),
}


def program(library, likelihood=lambda mean: dist.Normal(mean, 1.0).to_event(1)):
    bnn = vd.BayesianModule(NETS[library](), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean = bnn(x)
        with vd.data_plate(6, len(x)):
            numpyro.sample("y", likelihood(mean), obs=y)

    guide = AutoMeanField(model)
    svi = SVI(model, guide, optax.adam(0.01), vd.TraceVD_ELBO())
    state, _ = svi.update(svi.init(KEY, X, Y), X, Y)
    return bnn, model, guide, svi, state


def equal(first, second):
    return jax.tree.all(jax.tree.map(jnp.array_equal, first, second))


@pytest.mark.parametrize("library", NETS)
def test_a_compiled_step_whose_loss_is_not_finite_keeps_the_state(library):
    _, _, _, svi, state = program(library)
    update = jax.jit(svi.update)
    good, _ = update(state, X, Y)
    assert not equal(good.mutable_state, state.mutable_state)
    bad, loss = update(state, X, Y.at[0, 0].set(jnp.nan))
    assert not jnp.isfinite(loss) and equal(bad.mutable_state, state.mutable_state)
    worse, _ = update(state, X.at[0, 0].set(jnp.inf), Y)
    assert equal(worse.mutable_state, state.mutable_state)


def test_a_stable_update_keeps_state_and_parameters():
    _, _, _, svi, state = program("nnx")
    stable, _ = jax.jit(svi.stable_update)(state, X, Y.at[0, 0].set(jnp.nan))
    assert equal(stable.mutable_state, state.mutable_state)
    assert equal(svi.get_params(stable), svi.get_params(state))


@pytest.mark.parametrize("library", NETS)
def test_a_step_that_raises_leaves_everything(library):
    _, _, _, svi, state = program(library)
    before = jax.tree.map(jnp.copy, (state.mutable_state, svi.get_params(state)))
    for x, y in ((X, Y.at[0, 0].set(jnp.nan)), (X, Y[:, :1]), (X[:, :2], Y)):
        with pytest.raises((ValueError, TypeError, Exception)):  # noqa: B017, the last is raised by the net itself
            svi.update(state, x, y)
    assert equal(before, (state.mutable_state, svi.get_params(state)))
    first, loss = svi.update(state, X, Y)
    again, same = svi.update(state, X, Y)
    assert loss == same and equal(first.mutable_state, again.mutable_state)


@pytest.mark.parametrize("library", NETS)
def test_predictions_reports_and_losses_change_no_state(library):
    bnn, model, guide, svi, state = program(library)
    params = {**svi.get_params(state), **state.mutable_state}
    before = jax.tree.map(jnp.copy, params)
    own = jax.tree.map(jnp.copy, bnn.adapted.state)
    for mode in ("weights", "local", "mean"):
        vd.posterior_predictive(KEY, params, model, guide, X, num_samples=2, mode=mode)
    vd.lrt_report(KEY, params, model, guide, X)
    vd.gradient_variance(KEY, params, model, guide, svi.loss, X, Y, num_draws=2)
    svi.loss.loss(KEY, params, model, guide, X, Y)
    vd.prune(bnn, guide, params=params)
    assert equal(before, params) and equal(own, bnn.adapted.state)
