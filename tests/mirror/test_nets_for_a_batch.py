"""An equinox net that is written for a batch: its error says that nets are called with one example."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import pyro_vd.numpyro as vd


class ForBatches(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self.layer)(x)


@pytest.mark.parametrize("kind", ["ForBatches", "Linear"])
def test_the_shapes_that_the_net_was_called_with_are_named(kind):
    key = jax.random.key(0)
    layer = eqx.nn.Linear(3, 2, key=key)
    bnn = vd.BayesianModule(ForBatches(layer) if kind == "ForBatches" else layer, dist.Normal(0.0, 1.0))
    with pytest.raises((TypeError, ValueError)) as caught:
        numpyro.handlers.seed(bnn, key)(jnp.ones((5, 4)))
    *_, note = caught.value.__notes__
    assert f"got {kind} and inputs of shapes [(5, 4)]; it was called with [(4,)], one example each" in note
