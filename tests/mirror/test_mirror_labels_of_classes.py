"""Labels of classes in floating point, as files have them, are taken as in PyTorch: whole numbers, or an error."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import pyro_vd.numpyro as vd

PROBS = jnp.array([[[0.9, 0.1], [0.6, 0.4]], [[0.7, 0.3], [0.2, 0.8]]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint16", "bool"])
@pytest.mark.parametrize("logits", [False, True])
def test_whole_numbers_are_classes(dtype, logits):
    draws = dist.Categorical(logits=jnp.log(PROBS)) if logits else dist.Categorical(probs=PROBS)
    found = vd.Predictive(draws, "y").log_prob(np.array([0, 1], dtype))
    np.testing.assert_allclose(found, np.log([0.8, 0.6]), rtol=1e-6)


@pytest.mark.parametrize("label", [0.5, 2.0, -1.0, np.nan, np.inf])
def test_others_are_none(label):
    with pytest.raises(ValueError, match="expected values in the support of .*got 1 of 2 outside"):
        vd.Predictive(dist.Categorical(probs=PROBS), "y").log_prob(np.array([0.0, label], np.float32))
