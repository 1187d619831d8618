"""NumPyro, one pass: a function with a pole, or that is not defined everywhere, has no moments and is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import quax

from pyro_vd.numpyro.predict.moments import GaussianArray, Pass, ranges

pytestmark = pytest.mark.slow

X = jnp.linspace(-1.0, 1.0, 5)
REFUSED = {
    "pole": ("div", lambda o: 1 / (1 + o)),
    "pole of an even power": ("integer_pow|div", lambda o: 1 / o**2),
    "pole at 0": ("div", lambda o: 1 / jnp.abs(o)),
    "ratio": ("div", lambda o: o / (1 + o)),
    "ratio with a tanh": ("div", lambda o: o / jnp.tanh(o)),
    "log": ("log", lambda o: 1 + 2 * jnp.log(o)),
    "log1p": ("log1p", lambda o: 1 + 2 * jnp.log1p(o)),
    "sqrt": ("sqrt", lambda o: jnp.sqrt(o) + o**2),
    "rsqrt": ("rsqrt", lambda o: jax.lax.rsqrt(o) * o),
    "power": ("pow", lambda o: (o + o * o) ** -1.5),
    "negative power": ("integer_pow", lambda o: (o + o * o) ** -1),
    "inside another": ("div", lambda o: jax.nn.silu(jax.jit(lambda o: 2 / (o - 1))(o))),
}
TAKEN = {
    "logistic": lambda o: 1 / (1 + jnp.exp(-o)),
    "silu": lambda o: o / (1 + jnp.exp(-o)),
    "softplus": lambda o: jnp.log(1 + jnp.exp(o)),
    "softsign": lambda o: o / (1 + jnp.abs(o)),
    "root": lambda o: jnp.sqrt(1 + o * o) - 1,
    "Cauchy": lambda o: 3 / (1 + o**2),
    "Cauchy of a tanh": lambda o: 3 / (jnp.tanh(o) - 2),
    "root of a softplus": lambda o: jnp.sqrt(jax.nn.softplus(o)) + 1e-3,
    "log of a floor": lambda o: jnp.log(jnp.maximum(o, 0.0) + 0.5),
    "jax softplus": jax.nn.softplus,
    "jax celu": lambda o: jax.nn.celu(o, 0.5),
    "jax mish": jax.nn.mish,
    "jax gelu": jax.nn.gelu,
    "jax squareplus": jax.nn.squareplus,
    "jax softsign": jax.nn.soft_sign,
}


def gaussian():
    return GaussianArray(X, jnp.full_like(X, 0.5), Pass(jax.random.key(0), "error"))


@pytest.mark.parametrize("name, function", REFUSED.values(), ids=REFUSED)
def test_a_function_without_moments_is_refused(name, function):
    with pytest.raises(ValueError, match=f"got ({name}) on shapes"):
        quax.quaxify(jax.jit(function))(gaussian())
    with pytest.raises(ValueError, match="expected operations with a rule"):
        quax.quaxify(function)(gaussian())


@pytest.mark.parametrize("function", TAKEN.values(), ids=TAKEN)
def test_a_function_that_is_defined_everywhere(function):
    found = quax.quaxify(jax.jit(function))(gaussian())
    draws = X + jnp.sqrt(0.5) * jax.scipy.special.ndtri((jnp.arange(20_000) + 0.5) / 20_000)[:, None]
    values = function(draws)
    assert jnp.allclose(found.mean_value, values.mean(0), atol=2e-3)
    assert jnp.allclose(found.variance, values.var(0), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("divisor", [2.0, jnp.array(2.0)])
def test_a_divisor_that_is_an_argument(divisor):
    function = jax.jit(lambda o, c: jnp.tanh(o) / c + jnp.sqrt(c) + 1)
    expected = jnp.tanh(X).shape
    assert quax.quaxify(function)(gaussian(), divisor).mean_value.shape == expected
    outer = jax.jit(lambda c: quax.quaxify(function)(gaussian(), c).mean_value)  # the divisor has no value yet
    assert jnp.isfinite(outer(divisor)).all()


@pytest.mark.parametrize("function", [*TAKEN.values(), jnp.cosh, jnp.square, jax.nn.sigmoid, lambda o: (o - 1) ** 2])
def test_a_range_holds_the_values(function):
    ((low, high),) = ranges._ranges(jax.make_jaxpr(function)(X), [(-jnp.inf, jnp.inf)], [True])
    values = function(jnp.linspace(-30.0, 30.0, 1001))
    assert low - 1e-5 <= values.min() and values.max() <= high + 1e-5
