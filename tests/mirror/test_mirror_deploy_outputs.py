"""Outputs that cannot be compared, and those of a form that are others: a row or an error that says which."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pyro_vd.numpyro as vd
from pyro_vd.numpyro.sparsity.deploy import _difference

NET = eqx.nn.Linear(6, 3, key=jax.random.key(0))
SPARSE = eqx.tree_at(lambda net: net.weight, NET, NET.weight * (jnp.arange(18).reshape(3, 6) % 7 == 0))


def timer(call):
    call()
    return 1.0


@pytest.mark.parametrize("x", [jnp.ones((0, 6)), jnp.full((4, 6), jnp.nan)], ids=["empty", "NaN"])
def test_outputs_that_cannot_be_compared_are_refused(x):
    with pytest.raises(ValueError, match=r"expected outputs to compare, .* got shapes \[\(., 3\)\]; pass examples"):
        vd.deploy(SPARSE, x, forms=("dense", "bcoo"), min_sparsity=0.5, timer=timer)


def test_what_is_wrong_with_an_output_is_said():
    one = jnp.array([1.0, 2.0, jnp.nan])
    assert _difference((one, 3), (one, 3)) == _difference(one + 1e-5, one) == ""
    assert _difference(one.at[1].set(2.5), one) == "outputs up to 0.5 apart"
    assert _difference(one[:2], one) == "an output of ('float32', (2,)) for ('float32', (3,))"
    assert _difference(one.astype(jnp.float16), one) == "an output of ('float16', (3,)) for ('float32', (3,))"


@pytest.mark.parametrize("forms", [(), "bcsr", ("csr",), (1,), (["dense"],)])
def test_forms_are_those_that_there_are(forms):
    with pytest.raises(ValueError, match="forms: expected several of"):
        vd.deploy(SPARSE, jnp.ones((2, 6)), forms=forms)
