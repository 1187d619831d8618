"""Numbers of Python and NumPy, whole ones and arrays without dimensions too, mean what floating point arrays mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence

import pyro_vd.numpyro as vd

LOC = jnp.full((2, 3), 0.7)
WEIGHTS = {
    "DropoutNormal": vd.DropoutNormal(LOC, log_sigma2=-1.0).to_event(2),
    "LowRankNormal": vd.LowRankNormal(LOC, -1.0, jnp.ones((1, 2, 3))),
}
WHOLE = {"Python": int, "NumPy": np.int64, "NumPy, an array": np.asarray, "JAX": jnp.int32}
KINDS = {**WHOLE, "a float in an array": lambda value: np.asarray(float(value))}
MADE = {  # of 1 and 2
    "DropoutNormal": lambda one, two: vd.DropoutNormal(one, two),
    "DropoutNormal, log_sigma2": lambda one, two: vd.DropoutNormal(one, log_sigma2=two),
    "TruncatedLogUniform": lambda one, two: vd.TruncatedLogUniform(one, two),
    "CorrelatedDropoutNormal": lambda one, two: vd.CorrelatedDropoutNormal(LOC, two),
    "ConcreteDropout": lambda one, two: vd.ConcreteDropout(LOC, one),
    "LowRankNormal": lambda one, two: vd.LowRankNormal(LOC, two, jnp.ones((1, 2, 3))),
    "GroupNormal": lambda one, two: vd.GroupNormal(LOC, one, jnp.ones(3), two),
}
NO_NUMBERS = {"None": None, "text": "1.5", "a list of None": [None] * 3, "a list of text": ["1.5"] * 3, "True": True}


@pytest.mark.parametrize("whole", ["Python", "JAX"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_prior_of_whole_numbers_has_the_kl_of_floating_point_ones(name, whole):
    q, number = WEIGHTS[name], WHOLE[whole]
    expected = kl_divergence(q, dist.Normal(1.0, 2.0).expand([2, 3]).to_event(2))
    assert kl_divergence(q, dist.Normal(number(1), number(2)).expand([2, 3]).to_event(2)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MADE)
def test_a_number_of_any_kind_makes_the_distribution_of_floating_point_ones(name, kind):
    make, number = MADE[name], KINDS[kind]
    expected, got = make(1.0, 2.0), make(number(1), number(2))
    assert got.batch_shape == expected.batch_shape
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name(kind):
    value = NO_NUMBERS[kind]
    makers = {
        "log_alpha": lambda: vd.CorrelatedDropoutNormal(LOC, value),
        "log_sigma2": lambda: vd.LowRankNormal(LOC, value, jnp.ones((1, 2, 3))),
        "logit_dropout_rate": lambda: vd.ConcreteDropout(LOC, value),
        "unit_loc": lambda: vd.GroupNormal(LOC, LOC, value, jnp.ones(3)),
    }
    for name, make in makers.items():
        with pytest.raises(TypeError, match=f"expected {name} to be a number or an array, got"):
            make()
