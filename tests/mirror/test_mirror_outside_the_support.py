"""NumPyro, outside the support of a likelihood: 0 below and 1 above; NaN in a parameter is an error."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from pyro_vd.numpyro.predict import Predictive

pytestmark = pytest.mark.slow

ONE = jnp.ones((2, 1))
NAN = jnp.array([[1.0], [jnp.nan]])


@pytest.mark.parametrize(
    "draws, value, expected",
    [
        (dist.Weibull(ONE, 2 * ONE), -1.0, 0.0),
        (dist.Kumaraswamy(2 * ONE, 2 * ONE), 1.5, 1.0),
        (dist.Kumaraswamy(2 * ONE, 2 * ONE), -0.5, 0.0),
        (dist.Exponential(ONE), -1.0, 0.0),
        (dist.LogNormal(ONE, ONE), -1.0, 0.0),
        (dist.Uniform(0 * ONE, ONE), 2.0, 1.0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_cdf_outside_the_support(draws, value, expected):
    assert Predictive(draws, "y").cdf(jnp.array([value])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "quantity",
    [
        lambda y: y.log_prob(jnp.array([0.5])),
        lambda y: y.cdf(jnp.array([0.5])),
        lambda y: y.quantile(0.5),
    ],
    ids=["log_prob", "cdf", "quantile"],
)
@pytest.mark.parametrize(
    "likelihood",
    [
        lambda: dist.Normal(NAN, ONE),
        lambda: dist.Normal(ONE, NAN),
        lambda: dist.Exponential(NAN),
        lambda: dist.Uniform(NAN - 1.0, NAN),
    ],
    ids=["Normal loc", "Normal scale", "Exponential", "Uniform"],
)
def test_nan_in_a_parameter_of_one_draw(likelihood, quantity):
    with numpyro.validation_enabled(False), pytest.raises(ValueError, match="'y'.*NaN in"):
        quantity(Predictive(likelihood(), "y"))


@pytest.mark.parametrize("probability", ["a", None, "0.5"])
def test_a_probability_is_a_number(probability):
    with pytest.raises(TypeError, match="probability: expected a number between 0 and 1"):
        Predictive(dist.Normal(ONE, ONE), "y").quantile(probability)
