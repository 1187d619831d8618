"""Pruned nets of the JAX side are exported to StableHLO for any batch, and come back from their bytes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pyro_vd.numpyro as vd
from pyro_vd.numpyro.posteriors import DropoutNormal

pytestmark = pytest.mark.slow


def test_a_pruned_net_is_exported_for_any_batch():
    keys = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(20, 16, rngs=keys), jax.nn.relu, nnx.Linear(16, 3, rngs=keys))
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
    posteriors, given = {}, {}
    for name, value in bnn.adapted.parameters.items():
        if name in bnn.weight_names:
            noise = jnp.where(jnp.arange(value.size).reshape(value.shape) % 3 == 0, -10.0, 5.0)
            posteriors[bnn.site(name)] = DropoutNormal(value, log_sigma2=noise)
        else:
            given[bnn.site(name)] = value
    assert len(posteriors) == 2
    small = vd.prune(bnn, posteriors, params=given)
    zeros = [leaf for leaf in jax.tree.leaves(nnx.state(small)) if leaf.ndim == 2]
    assert all(0.6 < (leaf == 0).mean() < 0.7 for leaf in zeros)
    (batch,) = jax.export.symbolic_shape("batch")
    program = jax.export.export(jax.jit(lambda x: small(x)))(jax.ShapeDtypeStruct((batch, 20), jnp.float32))
    assert "stablehlo.dot_general" in program.mlir_module()
    again = jax.export.deserialize(program.serialize())
    for size in (1, 7):
        x = jax.random.normal(jax.random.key(size), (size, 20))
        np.testing.assert_allclose(again.call(x), small(x), rtol=1e-5, atol=1e-5)
