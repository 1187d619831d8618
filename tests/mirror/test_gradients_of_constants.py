"""Moments of a constant, a Gaussian of variance 0, have the gradient of the limit, alike on both backends."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
import quax
import torch

from pyro_vd.numpyro.predict.moments import GaussianArray, Pass
from pyro_vd.predict.moments.gaussian import GaussianTensor

TANH = 1 - math.tanh(1.0) ** 2
FUNCTIONS = {  # of both libraries; at 1 and -1 the slope, and the gradient of one variance to the other
    "relu": (torch.relu, lambda x: jnp.maximum(x, 0.0), (1.0, 0.0), (1.0, 0.0)),
    "abs": (torch.abs, jnp.abs, (1.0, -1.0), (1.0, 1.0)),
    "tanh": (torch.tanh, jnp.tanh, (TANH, TANH), (0.0, 0.0)),  # by quadrature: the root of 0 has no gradient
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("place", [0, 1])
def test_the_gradient_at_variance_zero(name, place):
    of_torch, of_jax, *limits = FUNCTIONS[name]
    mean, (slope, spread) = (1.0, -1.0)[place], (limit[place] for limit in limits)

    def moments(m, v):
        y = quax.quaxify(of_jax)(GaussianArray(m, v, Pass(jax.random.key(0), "error")))
        return y.mean_value[0], y.variance[0]

    found = jax.jacobian(moments, (0, 1))(jnp.array([mean]), jnp.zeros(1))
    x = torch.tensor([[mean], [0.0]], requires_grad=True)
    y = of_torch(GaussianTensor(x[0], x[1]))
    expected = [torch.autograd.grad(one.sum(), x, retain_graph=True)[0] for one in (y.mean_value, y.variance)]
    for ours, theirs, limit in zip(found, expected, ([slope, 0.0], [0.0, spread]), strict=True):
        assert [float(one[0]) for one in ours] == pytest.approx(limit, abs=1e-6)
        assert theirs[:, 0].tolist() == pytest.approx(limit, abs=1e-6)


def test_a_gradient_through_two_functions_of_one_gaussian():
    def variance(m):
        x = GaussianArray(m, jnp.ones(1), Pass(jax.random.key(0), "error"))
        return quax.quaxify(lambda x: jnp.maximum(x, -3.0 * x))(x).variance[0]

    step = 1e-2
    numeric = (variance(jnp.array([1.0 + step])) - variance(jnp.array([1.0 - step]))) / (2 * step)
    assert float(jax.grad(variance)(jnp.ones(1))[0]) == pytest.approx(float(numeric), rel=0.01)
