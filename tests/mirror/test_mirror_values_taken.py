"""A model that asks for the value of an array: run by its values where it is not compiled, else a clear error."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY, X, Y
from pyro_vd.guides.numpyro import AutoMeanField

pytestmark = pytest.mark.slow  # runs many programs

DECISIONS = {
    "data": lambda x, p, w: x.sum() < 1e9,
    "a number of data": lambda x, p, w: float(x.mean()) < 1e9,
    "a parameter": lambda x, p, w: p,
    "a site": lambda x, p, w: w.sum() < 1e9,
}


def program(decide):
    def model(x, y=None):
        p, w = numpyro.param("p", jnp.array(1.0)), numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        scale = 1.0 if decide(x, p, w) else 2.0
        with vd.data_plate(12, len(x)):
            numpyro.sample("y", dist.Normal(x @ w, scale), obs=y)

    return model, AutoMeanField(model, where="w")


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_a_guide_sees_such_a_model(decide):
    assert handlers.seed(program(decide)[1], KEY)(X, Y)["w"].shape == (3,)


def test_what_compiles_a_model_says_that_it_cannot():
    model, guide = program(DECISIONS["data"])
    handlers.seed(guide, KEY)(X, Y)
    params = {"p": jnp.array(1.0), "auto.locs.w": jnp.zeros(3), "auto.log_sigma2s.w": jnp.zeros(3)}
    for name, run in {
        "posterior_predictive": lambda: vd.posterior_predictive(KEY, params, model, guide, X, num_samples=1),
        "predictive_distribution": lambda: vd.predictive_distribution(KEY, params, model, guide, X, num_samples=1),
        "gradient_variance": lambda: vd.gradient_variance(
            KEY, params, model, guide, vd.TraceVD_ELBO(), X, Y, num_draws=2
        ),
    }.items():
        with pytest.raises(
            TypeError, match=f"{name}: expected a model and guide that can be compiled, .* jax.lax.cond"
        ):
            run()
