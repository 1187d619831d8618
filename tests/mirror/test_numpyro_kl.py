"""The KL in JAX: the numbers of the Pyro side, value and gradients, and the 40-digit oracle."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import helpers.mirror_compiling  # noqa: F401
import pyro_vd.kl as ours
from helpers.paths import DATA
from pyro_vd.numpyro import kl as theirs

ROWS = json.loads((DATA / "kl_log_uniform.json").read_text())["rows"]
GRID = np.unique(np.concatenate([np.linspace(-20, 20, 801), [0.0, -1e-3, 1e-3, -60.0, 60.0]]))
FORMULAS = {name: lambda side, x, name=name: side.kl_log_uniform(x, name) for name in ours._METHODS} | {
    "ard": lambda side, x: side.kl_ard(x)
}
DTYPES = {"float64": 1e-6, "float32": 1e-5}


def column(name):
    return np.array([math.nan if row[name] is None else row[name] for row in ROWS])


def torch_derivatives(function, *inputs):
    inputs = [torch.tensor(x, requires_grad=True) for x in inputs]
    value = function(*inputs)
    first = torch.autograd.grad(value.sum(), inputs, create_graph=True)
    second = torch.autograd.grad(first[0].sum(), inputs[0], allow_unused=True)[0] if first[0].requires_grad else None
    zero = torch.zeros_like(inputs[0])
    return [t.detach().numpy() for t in (value, *first, zero if second is None else second)]


def jax_derivatives(function, *inputs):
    indices = tuple(range(len(inputs)))
    first = jax.grad(lambda *x: function(*x).sum(), indices)
    second = jax.grad(lambda *x: first(*x)[0].sum())
    return jax.jit(lambda *x: (function(*x), *first(*x), second(*x)))(*map(jnp.asarray, inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", FORMULAS)
def test_value_and_two_derivatives_are_those_of_the_pyro_side(method, dtype):
    x, formula = GRID.astype(dtype), FORMULAS[method]
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        found = jax_derivatives(lambda x: formula(theirs, x), x)
    expected = torch_derivatives(lambda x: formula(ours, x), x)
    # The gradient keeps its relative accuracy where it is small; the value and the second derivative cancel there.
    for got, value, atol in zip(found, expected, (1.0, 1e-9, 3.0), strict=True):
        assert got.dtype == dtype
        atol *= {"float64": 1e-14, "float32": 2e-7}[dtype]
        np.testing.assert_allclose(got, value, rtol=DTYPES[dtype], atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_alpha_and_its_gradients_are_those_of_the_pyro_side_down_to_zero(dtype):
    tiny = np.finfo(dtype).tiny
    loc = np.array([0.0, -0.0, tiny / 4, -3 * tiny, 1e-30, -1e-3, 0.7, 5.0], dtype)
    log_sigma2 = np.linspace(-12, 3, len(loc)).astype(dtype)
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        found = jax_derivatives(theirs.log_alpha_additive, loc, log_sigma2)
    expected = torch_derivatives(ours.log_alpha_additive, loc, log_sigma2)
    assert np.isfinite(found[0]).all() and np.isfinite(found[1]).all()
    for got, value in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(got, value, rtol=DTYPES[dtype])


@pytest.mark.parametrize(("dtype", "value_error", "gradient_error"), [("float64", 1e-9, 1e-8), ("float32", 1e-5, 1e-4)])
def test_exact_is_the_40_digit_value(dtype, value_error, gradient_error):
    with jax.enable_x64(dtype == "float64"):
        value, gradient, _ = jax_derivatives(
            lambda x: theirs.kl_log_uniform(x, "exact"), column("log_alpha").astype(dtype)
        )
    assert np.abs(np.asarray(value) - column("kl_exact")).max() <= value_error
    assert np.abs(np.asarray(gradient) - column("dkl_dlog_alpha_exact")).max() <= gradient_error


@pytest.mark.usefixtures("x64")
def test_exact_gradient_is_a_formula_of_its_own_and_not_that_of_the_series():
    text = str(jax.make_jaxpr(lambda x: theirs.kl_log_uniform(x, "exact"))(1.0))
    assert "custom_jvp_call" in text
    step = 1e-5
    points = jnp.linspace(-8.0, 8.0, 33)
    gradient = jax.vmap(jax.grad(lambda x: theirs.kl_log_uniform(x, "exact")))
    value = [theirs.kl_log_uniform(points + shift, "exact") for shift in (-step, step)]
    np.testing.assert_allclose(gradient(points), (value[1] - value[0]) / (2 * step), atol=1e-7)


def test_unknown_method_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"expected method to be one of 'sigmoid', .*'exact', got 'cubed'"):
        theirs.kl_log_uniform(jnp.zeros(2), "cubed")
    assert set(theirs._METHODS) == set(ours.LOG_UNIFORM_METHODS)
