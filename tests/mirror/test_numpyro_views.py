"""Views of a random weight in JAX: of its moments, of its draw, and of noise shared by units or of low rank.

The checks are exact but two, which allow the standard errors of ``oracles.standard_errors``.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pyro_vd.numpyro as vd
from helpers.mirror_operations import inside, keyed, make, random_weight, weight_of
from helpers.oracles import standard_errors
from pyro_vd.numpyro.posteriors import CorrelatedDropoutNormal, GroupNormal, LowRankNormal
from pyro_vd.numpyro.weights import views

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(3)
MASK = jnp.array([[[1.0, 0.0, 2.0, -1.0]], [[0.0, 1.0, 3.0, 0.5]]])  # broadcasts with (2, 3, 4)
MESH = jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices()[:1], "a"), jax.sharding.PartitionSpec())

# Views of a weight of shape (2, 3, 4), under the primitive they come down to.
VIEWS = {
    "transpose": lambda w: w.transpose(2, 0, 1),
    "reshape": lambda w: w.reshape(4, -1),
    "squeeze": lambda w: w[1:].squeeze(0),
    "rev": lambda w: jnp.flip(w, (0, 2)),
    "slice": lambda w: w[:, 1:, ::2],
    "dynamic_slice": lambda w: lax.dynamic_slice(w, (1, 0, 2), (1, 3, 2)),
    "split": lambda w: jnp.split(w, 2, axis=2)[1],
    "copy": lambda w: jnp.array(w, copy=True),
    "sharding_constraint": lambda w: lax.with_sharding_constraint(w, MESH),
    "stop_gradient": lax.stop_gradient,
    "broadcast_in_dim": lambda w: w[:, None, ..., None],
    "convert_element_type": lambda w: w.astype(jnp.float32),
    "mul": lambda w: 2.0 * w * MASK.astype(w.dtype),
    "div": lambda w: w / (MASK.astype(w.dtype) + 5.0),
    "neg": lambda w: -w,
    "nested": lambda w: (0.5 * w.T.reshape(6, 4)[1:5]).T,
    "of one element": lambda w: w[1, 2, 3],
}


def split(number):
    return jax.random.split(KEY, number)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_view_acts_on_the_moments_and_on_the_draw(view):
    weight = make(2, 3, 4)
    seen = inside(view, weight)
    assert isinstance(seen, vd.RandomWeight) and not weight.state.used and not weight.state.drawn
    matrix = jax.jacobian(lambda w: view(w).astype(float))(weight.loc).reshape(-1, 24)
    if view is lax.stop_gradient:
        matrix = jnp.eye(24)
    assert seen.shape == seen.loc.shape == seen.variance.shape == view(weight.loc).shape
    assert seen.dtype == view(weight.loc).dtype
    rtol = 1e-6 if seen.dtype == jnp.float32 else 1e-12
    np.testing.assert_allclose(seen.loc.reshape(-1), matrix @ weight.loc.reshape(-1), rtol, rtol)
    np.testing.assert_allclose(seen.variance.reshape(-1), matrix**2 @ weight.variance.reshape(-1), rtol, rtol)
    np.testing.assert_array_equal(seen.noise.variance, seen.variance)
    np.testing.assert_array_equal(seen.materialize(), view(make(2, 3, 4).materialize()))


def test_every_view_of_the_table_is_tested():
    assert {primitive.name for primitive in views.SHAPE_VIEWS} <= set(VIEWS)


def test_variance_of_a_half_precision_view_stays_in_single_precision():
    weight = random_weight(jnp.zeros(3), jnp.full(3, 1e-9))
    seen = inside(lambda w: w.astype(jnp.float16), weight)
    assert seen.dtype == jnp.float16 and seen.variance.dtype == seen.noise.variance.dtype == jnp.float32
    np.testing.assert_allclose(seen.noise.variance, 1e-9, rtol=1e-6)
    x = jnp.full((1, 3), 300.0, jnp.float16)
    drawn = jax.vmap(lambda key: inside(lambda x, w: x @ w.astype(x.dtype), x, keyed(weight, key)))(split(2000))
    # 300**2 overflows float16, and 1e-9 is 0 in it.
    expected = math.sqrt(3 * 300.0**2 * 1e-9)
    bound = standard_errors() * expected / math.sqrt(2 * 2000) + 1e-3 * expected
    assert drawn.dtype == jnp.float16 and abs(float(jnp.std(drawn.astype(float))) - expected) < bound


UNITS = {
    "units 0": lambda loc: CorrelatedDropoutNormal(loc, 0.3, unit_dim=0),
    "units 1": lambda loc: GroupNormal(loc, loc - 1, jnp.ones(3), jnp.ones(3), unit_dim=1),
    "low rank": lambda loc: LowRankNormal(loc, 0.1, jnp.stack([loc, -loc])),
}


@pytest.mark.parametrize("family", UNITS)
@pytest.mark.parametrize("form", ["transposed and negative", "slice of outputs"])
def test_noise_of_units_and_of_low_rank_goes_through_views(family, form):
    """E[y] and Var[y] of a product with a view, from the parts of the noise that the view has."""
    loc = jnp.arange(1.0, 7.0).reshape(2, 3) / 3
    view = (lambda w: w[1:]) if form == "slice of outputs" else (lambda w: -w.T.T)
    q = UNITS[family](loc)
    x = jnp.array([1.0, -2.0, 0.5])
    weight = weight_of(q.noise(), strict=False)
    if form == "slice of outputs" and family == "units 0":  # some units only: not a noise of units
        with pytest.warns(UserWarning, match="site 'w'.*got slice; the weight is drawn once"):
            inside(lambda w: view(w) @ x, weight)
        return
    seen = inside(view, weight)
    np.testing.assert_allclose(seen.materialize(), view(weight_of(q.noise()).materialize()), rtol=1e-12)
    np.testing.assert_allclose(seen.noise.loc, view(q.noise().loc))
    local = jax.vmap(lambda key: inside(lambda x, w: view(w) @ x, x, keyed(weight, key)))
    drawn, coherent = jax.jit(local)(split(4000)), jax.jit(jax.vmap(lambda key: view(q.sample(key)) @ x))(split(4000))
    # Of a single row, the local output has the distribution of the product with a drawn weight, element by element.
    for power in (1, 2):
        gap = (drawn**power).mean(0) - (coherent**power).mean(0)
        error = jnp.sqrt(((drawn**power).var(0) + (coherent**power).var(0)) / 4000)
        assert (jnp.abs(gap) <= standard_errors(gap.size) * error).all()
