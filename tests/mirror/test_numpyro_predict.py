"""Posterior predictive on NumPyro: coherent functions, pieces, the mean network; and variances of gradients."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import helpers.mirror_compiling  # noqa: F401
import pyro_vd.numpyro as vd
from helpers.oracles import standard_errors

KEY = jax.random.key(0)
PARAMS = {"loc": jnp.full((3, 1), 2.0)}


def model(x, y=None):
    w = numpyro.sample("w", vd.ImproperLogUniform().expand([3, 1]).to_event(2))
    mean = numpyro.deterministic("mean", (x @ w).squeeze(-1))
    with vd.data_plate(100, len(x)):
        return numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def guide(x, y=None):
    loc = numpyro.param("loc", jnp.ones((3, 1)))
    numpyro.sample("w", vd.DropoutNormal(loc, log_sigma2=0.0).to_event(2))


def predictive(x, **options):
    return vd.posterior_predictive(KEY, PARAMS, model, guide, x, **options)


def test_modes():
    """Equal rows: one function in mode "weights", unrelated in "local", and no spread at all in "mean"."""
    x = jnp.ones((2, 3))
    n = 400
    weights, local, mean = (predictive(x, num_samples=n, mode=mode)["mean"] for mode in ("weights", "local", "mean"))
    assert weights.shape == (n, 2)
    assert (weights[:, 0] == weights[:, 1]).all() and (mean == 6.0).all()
    for draws in (weights, local):  # N(6, 3)
        assert abs(draws[:, 0].mean() - 6.0) < standard_errors() * math.sqrt(3 / n)
        assert abs(draws[:, 0].var() / 3 - 1) < standard_errors() * math.sqrt(2 / n)
    assert abs(np.corrcoef(local.T)[0, 1]) < standard_errors() / math.sqrt(n)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("mode", ["weights", "mean"])
def test_pieces_are_the_same_functions(mode, batch_size):
    x = jax.random.normal(KEY, (7, 3))
    whole = predictive(x, num_samples=3, mode=mode)
    pieces = predictive(x, num_samples=3, mode=mode, batch_size=batch_size)
    assert set(whole) == set(pieces) == {"mean", "y"}
    np.testing.assert_allclose(pieces["mean"], whole["mean"], rtol=1e-5)
    assert pieces["y"].shape == (3, 7) and len(np.unique(pieces["y"])) == 21


def test_return_sites_and_keywords():
    assert set(predictive(jnp.ones((2, 3)), num_samples=1, return_sites=["w"])) == {"w"}

    def options(x, double=False, name="mean"):
        numpyro.deterministic(name, x.sum(-1) * (2 if double else 1))

    def nothing(x, double=False, name="mean"):
        pass

    x = jnp.ones((4, 3))
    got = vd.posterior_predictive(KEY, {}, options, nothing, x, num_samples=1, batch_size=3, double=True, name="z")
    np.testing.assert_allclose(got["z"], jnp.full((1, 4), 6.0))


def test_bad_input():
    x = jnp.ones((2, 3))
    for options, message in (
        ({"num_samples": 0}, "num_samples: expected at least 1"),
        ({"num_samples": 1, "mode": "draws"}, "mode: expected one of 'weights', 'local', 'mean'"),
        ({"num_samples": 1, "batch_size": 0}, "batch_size: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            predictive(x, **options)
    with pytest.raises(ValueError, match="posterior_predictive: expected a random key, got int"):
        vd.posterior_predictive(0, PARAMS, model, guide, x, num_samples=1)
    with pytest.raises(ValueError, match="expected an array of examples among the arguments"):
        vd.posterior_predictive(KEY, {}, lambda: None, lambda: None, num_samples=1, batch_size=2)

    def local_guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"expected a guide without sites inside a plate, got \['z'\]"):
        vd.posterior_predictive(KEY, {}, local_guide, local_guide, jnp.ones((5, 3)), num_samples=1, batch_size=2)


def test_variance_of_the_gradient():
    """Of the mean of a Gaussian likelihood: in closed form for local noise, and per layer."""

    def linear(x):
        w = numpyro.sample("net.w", dist.Normal(jnp.zeros((1, 1)), 1.0).to_event(2))
        numpyro.sample("y", dist.Normal(x @ w, 1.0).to_event(2), obs=jnp.zeros((len(x), 1)))

    def weight(x):
        loc = numpyro.param("loc.net.w", jnp.ones((1, 1)))
        numpyro.sample("net.w", vd.DropoutNormal(loc, log_sigma2=math.log(0.25)).to_event(2))

    x = jnp.array([[1.0], [2.0]])
    # gradient = sum_m x_m * (x_m * loc + 0.5 * |x_m| * e_m) + loc: of variance 0.25 * sum x_m**4, one e_m a row
    params, n = {"loc.net.w": jnp.ones((1, 1))}, 500
    for estimator, expected in (("local", 0.25 * 17), ("shared", 0.25 * 25)):
        found = vd.gradient_variance(KEY, params, linear, weight, vd.TraceVD_ELBO(estimator), x, num_draws=n)
        assert abs(found.parameters["loc.net.w"] / expected - 1) < standard_errors() * math.sqrt(2 / n)
        assert found.per_layer() == {"net": found.per_parameter()["loc.net.w"]}
    # Exactly that of the gradients of its draws.
    few = vd.gradient_variance(KEY, params, linear, weight, vd.TraceVD_ELBO(), x, num_draws=3)
    gradient = jax.jit(jax.grad(lambda p, key: vd.TraceVD_ELBO().loss(key, p, linear, weight, x)))
    drawn = [gradient(params, jax.random.split(key)[1])["loc.net.w"] for key in jax.random.split(KEY, 3)]
    np.testing.assert_allclose(few.parameters["loc.net.w"], np.var(drawn, 0, ddof=1), rtol=1e-5)
    batches = vd.gradient_variance(KEY, params, linear, weight, vd.TraceVD_ELBO(), x, num_draws=50, batch_size=1)
    assert batches.num_draws == 50 and "mean variance over 50 draws" in str(batches)
    for options, message in (
        ({"num_draws": 1}, "num_draws: expected"),
        ({"num_draws": 2, "batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            vd.gradient_variance(KEY, params, linear, weight, vd.TraceVD_ELBO(), x, **options)
