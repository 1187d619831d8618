"""NumPyro, one pass: parameters of a likelihood that are functions of the same Gaussian are drawn together."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyro_vd.numpyro as vd
from helpers.oracles import log_density_of_mixture

pytestmark = pytest.mark.slow

LOC, VARIANCE = jnp.array([[0.3, -0.2]]), 0.7
PARAMETERS = {
    "slices": (lambda o: (o[:, 0], jnp.exp(-o[:, 0])), lambda a, b: (a, np.exp(-a))),
    "slices of a function": (lambda o: (o[:, 0], jnp.exp(-o)[:, 0]), lambda a, b: (a, np.exp(-a))),
    "a scaled slice": (lambda o: ((2 * o)[:, 0], jnp.exp(1 - o[:, 0])), lambda a, b: (2 * a, np.exp(1 - a))),
    "reshaped": (lambda o: (o[:, :1].reshape(-1), jnp.exp(-o.T[0])), lambda a, b: (a, np.exp(-a))),
    "split": (lambda o: (jnp.split(o, 2, -1)[0][:, 0], jnp.exp(-o[..., 0])), lambda a, b: (a, np.exp(-a))),
    "a softplus": (
        lambda o: (jnp.tanh(o[:, 0]), jax.nn.softplus(o[:, 0]) + 0.1),
        lambda a, b: (np.tanh(a), np.log1p(np.exp(a)) + 0.1),
    ),
    "two elements": (lambda o: (o[:, 0], jnp.exp(o[:, 1])), lambda a, b: (a, np.exp(b))),
}


def guide(x):
    numpyro.sample("w", vd.DropoutNormal(LOC, log_sigma2=math.log(VARIANCE)).to_event(2))


@pytest.mark.parametrize("of_weight", [False, True], ids=["of an activation", "of a weight"])
@pytest.mark.parametrize("parameters, of", PARAMETERS.values(), ids=PARAMETERS)
def test_functions_of_one_gaussian_share_its_noise(parameters, of, of_weight):
    def model(x):
        w = numpyro.sample("w", dist.Normal(jnp.zeros((1, 2)), 1.0).to_event(2))
        o = w if of_weight else x @ w
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(*parameters(o)))

    x, key = jnp.ones((1, 1)), jax.random.key(0)
    y = vd.predictive_distribution(key, {}, model, guide, x, mode="moments", num_samples=20_000)["y"]
    for value in (0.0, 1.0):
        # The spread of the estimate over keys is below 0.005.
        assert y.log_prob(jnp.array([value])).item() == pytest.approx(
            log_density_of_mixture(of, value, LOC[0], VARIANCE), abs=0.03
        )
