"""Mappings, lists and names that hold what they should not: errors that say what was expected."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoSparseVD

BNN = vd.BayesianModule(eqx.nn.Linear(3, 1, key=jax.random.key(0)), vd.ImproperLogUniform())
ARRAYS = {"net.weight": jnp.ones((1, 3))}
POSTERIORS = {"net.weight": vd.DropoutNormal(jnp.ones((1, 3)), log_sigma2=0.0)}
PARAMS = {"net.bias": jnp.zeros(1)}
READERS = {
    "prune": lambda: vd.prune(BNN, ARRAYS, params=PARAMS),
    "keep_masks": lambda: vd.keep_masks(ARRAYS),
    "sparsity_report": lambda: vd.sparsity_report(ARRAYS),
    "weight_bits": lambda: vd.weight_bits(ARRAYS),
    "threshold_curve": lambda: vd.threshold_curve(BNN, ARRAYS, lambda net: 1.0, params=PARAMS),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_arrays_are_no_posteriors(read):
    with pytest.raises(TypeError, match="site 'net.weight': expected the posterior of a weight, got .*; write guide"):
        read()


@pytest.mark.parametrize("wrong", ["a", 5, ["a"], [None], lambda: 1, {}, jnp.array(1.0), jnp.ones((2, 2)), [jnp.nan]])
def test_thresholds_are_numbers(wrong):
    with pytest.raises(ValueError, match="threshold.*: expected .*got"):
        vd.threshold_curve(BNN, POSTERIORS, lambda net: 1.0, wrong, params=PARAMS)


@pytest.mark.parametrize("prefix", [3, None, jnp.ones(3)])
def test_a_prefix_is_text(prefix):
    with pytest.raises(TypeError, match="prefix: expected text, .*got"):
        AutoSparseVD(BNN, prefix=prefix)


@pytest.mark.parametrize("wrong", [np.ones(3), jnp.ones(3), jnp.array(True), 3, None])
def test_names_and_choices_of_sites_are_no_arrays(wrong):
    guide = AutoSparseVD(BNN)
    with pytest.raises(ValueError, match="site: expected one of the weight sites .*got"):
        guide.log_alpha({}, wrong)
    with pytest.raises(TypeError, match="learnable: expected True or False, got"):
        guide.set_learnable("locs", wrong)
    with pytest.raises(TypeError, match="where: expected site names or patterns"):
        guide.set_learnable("locs", where=3 if wrong is None else wrong)
