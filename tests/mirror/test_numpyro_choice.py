"""The choice of weights of the mirror: priors by layer type and owner, and what is left out. Exact."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax import Array

import pyro_vd.numpyro as vd

PRIOR = dist.Normal(0.0, 1.0)


class Mixed(eqx.Module):
    """A matrix of its own beside a layer."""

    inner: eqx.nn.Linear
    mix: Array

    def __init__(self):
        self.inner, self.mix = eqx.nn.Linear(2, 2, key=jax.random.key(0)), jnp.ones((3, 2))

    def __call__(self, x: Array) -> Array:
        return self.mix @ self.inner(x)


def test_most_of_a_net_left_out_is_said_with_a_where_to_paste():
    with pytest.warns(UserWarning, match=r"got 40.0% of their elements; deterministic are those of Mixed ") as said:
        assert vd.BayesianModule(Mixed(), PRIOR).weight_names == ("inner.weight",)
    assert len(said) == 1 and "where=('inner.weight', 'mix')" in str(said[0].message)
    assert vd.BayesianModule(Mixed(), PRIOR, where=("inner.weight", "mix")).weight_names == ("inner.weight", "mix")


class Two(nnx.Module):
    def __init__(self):
        self.first, self.second = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))

    def __call__(self, x: Array) -> Array:
        return self.second(self.first(x))


def scales(bnn: vd.BayesianModule) -> list[float]:
    return [float(prior.scale) for prior in bnn.priors.values()]


def test_a_prior_is_found_by_layer_type_and_by_a_function_of_the_layer():
    by_type = {"second.*": dist.Normal(0.0, 2.0), nnx.Linear: PRIOR}
    assert scales(vd.BayesianModule(Two(), by_type)) == [1.0, 2.0]
    of_layer = vd.BayesianModule(Two(), lambda name, parameter, layer: dist.Normal(0.0, float(layer.in_features)))
    assert scales(of_layer) == [4.0, 3.0]
    with pytest.raises(ValueError, match=r"got \['Conv'\], which match none"):
        vd.BayesianModule(Two(), {"*": PRIOR, nnx.Conv: PRIOR})
    with pytest.raises(ValueError, match=r"expands to the shape \(4, 3\) of parameter 'first.kernel'"):
        vd.BayesianModule(Two(), dist.Normal(jnp.zeros(7), 1.0))
