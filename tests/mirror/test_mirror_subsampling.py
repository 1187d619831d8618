"""Plates that subsample after a net: what draws a random number after it does so in compiled steps as in eager ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from numpyro.infer import SVI

import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY, N, X, Y, net, regression
from pyro_vd.guides.numpyro import AutoMeanField

pytestmark = pytest.mark.slow  # compiles many programs

LIBRARIES = ("linen", "nnx", "equinox")


def one_plate(mean, y):
    with numpyro.plate("N", N, subsample_size=5) as index:
        numpyro.sample("y", dist.Normal(mean[index], 1.0), obs=y[index])


def nested(mean, y):
    with (
        numpyro.plate("outer", N, subsample_size=6, dim=-2) as rows,
        numpyro.plate("inner", N, subsample_size=4) as cols,
    ):
        numpyro.sample("y", dist.Normal(mean[rows][:, None], 1.0), obs=y[rows][:, None] + y[cols])


def several(mean, y):
    for i in range(2):
        with numpyro.plate(f"N{i}", N, subsample_size=5) as index:
            numpyro.sample(f"y{i}", dist.Normal(mean[index], 1.0), obs=y[index])


def a_latent_draw(mean, y):
    """No plate: a key for something else after the net."""
    shift = jax.random.normal(numpyro.prng_key(), ())
    with vd.data_plate(N, len(mean)):
        numpyro.sample("y", dist.Normal(mean + shift, 1.0), obs=y)


LIKELIHOODS = {"one": one_plate, "nested": nested, "several": several, "a key": a_latent_draw}


def program(library, likelihood, wrap=None):
    bnn = vd.BayesianModule(wrap or net(library), dist.Normal(0.0, 1.0))

    def model(x, y):
        likelihood(bnn(x).squeeze(-1), y)

    return SVI(model, AutoMeanField(model), optax.adam(0.01), vd.TraceVD_ELBO())


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_jitted_step_has_the_loss_of_the_eager_one(library, likelihood):
    svi = program(library, likelihood)
    state = svi.init(KEY, X, Y)
    _, expected = svi.update(state, X, Y)
    after, loss = jax.jit(svi.update)(state, X, Y)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    _, other = svi.update(after, X, Y)  # other examples, other noise: the key moved on
    assert abs(float(other) - float(loss)) > 1e-3


@pytest.mark.parametrize("likelihood", [one_plate, nested], ids=["one", "nested"])
def test_scan_run_and_vmap_have_the_losses_of_eager_steps(likelihood):
    svi = program("nnx", likelihood)
    state = svi.init(KEY, X, Y)
    expected, eager = [], state
    for _ in range(3):
        eager, loss = svi.update(eager, X, Y)
        expected.append(float(loss))
    _, scanned = jax.lax.scan(lambda s, _: svi.update(s, X, Y), state, None, length=3)
    np.testing.assert_allclose(scanned, expected, rtol=1e-4)
    ran = svi.run(KEY, 3, X, Y, progress_bar=False, init_state=state)
    np.testing.assert_allclose(ran.losses, expected, rtol=1e-4)
    params, keys = svi.get_params(state), jax.random.split(KEY, 3)
    losses = jax.vmap(lambda key: svi.loss.loss(key, params, svi.model, svi.guide, X, Y))(keys)
    one_by_one = [float(svi.loss.loss(key, params, svi.model, svi.guide, X, Y)) for key in keys]
    np.testing.assert_allclose(losses, one_by_one, rtol=1e-4)


def test_the_loss_of_a_subsample_is_scaled_to_the_data_set():
    """Expectation over all subsamples of one example: with no noise in the weights the mean is the whole data term."""
    svi = program("equinox", lambda mean, y: one_plate(mean, y))
    params = svi.get_params(svi.init(KEY, X, Y))
    params |= {"auto.log_sigma2s.net.weight": jnp.full((1, 3), -60.0)}
    terms = jax.vmap(lambda key: svi.loss.terms(key, params, svi.model, svi.guide, X, Y).data)(
        jax.random.split(KEY, 2000)
    )
    mean = X @ params["auto.locs.net.weight"][0] + params["net.bias"]
    whole = -dist.Normal(mean, 1.0).log_prob(Y).sum()
    # Six standard errors of the mean of 2000 draws: one failure in 5e8.
    assert abs(terms.mean() - whole) < 6 * terms.std() / np.sqrt(2000)


class Dropped(nnx.Module):
    def __init__(self):
        self.linear, self.dropout = nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.linear(self.dropout(x))


class LinenDropped(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.Dropout(0.5, deterministic=False)(x))


def bound():
    return LinenDropped().bind(LinenDropped().init({"params": KEY, "dropout": KEY}, X))


@pytest.mark.parametrize("make", [Dropped, bound], ids=["nnx", "linen"])
def test_nets_with_dropout_of_their_own(make):
    svi = program("", one_plate, make())
    state = svi.init(KEY, X, Y)
    _, expected = svi.update(state, X, Y)
    after, loss = jax.jit(svi.update)(state, X, Y)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert float(svi.update(after, X, Y)[1]) != float(loss)


def test_the_helpers_regression_subsamples_too():
    *_, svi = regression(plate="subsampling")
    state = svi.init(KEY, X, Y)
    np.testing.assert_allclose(jax.jit(svi.update)(state, X, Y)[1], svi.update(state, X, Y)[1], rtol=1e-4)
