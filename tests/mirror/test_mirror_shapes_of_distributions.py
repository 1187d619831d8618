"""Shapes that cannot be meant, of draws, expansions and values of the mirror's distributions: errors in words."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField, mixed_guide

KEY, LOC = jax.random.key(0), np.full((2, 3), 0.5, np.float32)
WITH_DENSITY = {
    "DropoutNormal": lambda: vd.DropoutNormal(LOC, 0.0),
    "LowRankNormal": lambda: vd.LowRankNormal(LOC, 0.0, np.full((1, 2, 3), 0.5, np.float32)),
    "TruncatedLogUniform": lambda: vd.TruncatedLogUniform(0.1, np.full((2, 3), 2.0, np.float32)),
}
ROWS = {
    **WITH_DENSITY,
    "CorrelatedDropoutNormal": lambda: vd.CorrelatedDropoutNormal(LOC, 0.0),
    "BernoulliDropout": lambda: vd.BernoulliDropout(LOC, 0.5),
    "ConcreteDropout": lambda: vd.ConcreteDropout(LOC, 0.0),
    "GroupNormal": lambda: vd.GroupNormal(LOC, LOC, np.ones(3, np.float32), np.ones(3, np.float32)),
}
IMPROPER = {"ImproperLogUniform": lambda: vd.ImproperLogUniform((2, 3))}
NO_SHAPES = {
    "float": (2.0, TypeError, "(10,)"),
    "number": (3, TypeError, "write (3,)"),
    "text": ("3", TypeError, "'3'"),
    "None": (None, TypeError, "None"),
    "array": (jnp.ones(2), TypeError, "shape (2,)"),
    "array of sizes": (np.array([2, 3]), TypeError, "(10,)"),
    "set": ({2, 3}, TypeError, "{2, 3}"),
    "negative": ((-1,), ValueError, "got -1"),
    "of float": ((2, 1.5), ValueError, "got 1.5"),
    "of bool": ((True,), ValueError, "got True"),
    "nested": (((2, 3),), ValueError, "got (2, 3)"),
    "nested list": ([2, [3]], ValueError, "got [3]"),
}


@pytest.mark.parametrize("kind", NO_SHAPES)
def test_a_sample_shape_that_is_none_is_refused(kind):
    value, error, said = NO_SHAPES[kind]
    for make in ROWS.values():
        q = make()
        for draw in (q.sample, q.rsample, lambda key, shape, q=q: q(rng_key=key, sample_shape=shape)):
            with pytest.raises(
                error, match=r"^\w+: expected (every size in )?sample_shape to be .* got .*; write "
            ) as got:
                draw(KEY, value)
            assert said in str(got.value)


@pytest.mark.parametrize("row", ROWS)
def test_sample_shapes_that_are_meant(row):
    q = ROWS[row]()
    for given in ((4, 5), [4, 5], (np.int64(4), 5), (jnp.asarray(4), 5)):
        assert jax.eval_shape(lambda key, given=given: q.sample(key, given), KEY).shape == (4, 5, 2, 3)
    assert jax.eval_shape(lambda key: q.sample(key, (0,)), KEY).shape == (0, 2, 3)


@pytest.mark.parametrize("kind", NO_SHAPES)
def test_an_expansion_to_no_shape_is_refused(kind):
    value, error, _ = NO_SHAPES[kind]
    for make in (*ROWS.values(), *IMPROPER.values()):
        with pytest.raises(error, match=r"^\w+: expected (every size in )?the batch_shape of expand to be .*; write"):
            make().expand(value)


@pytest.mark.parametrize("row", ["DropoutNormal", "TruncatedLogUniform", "ImproperLogUniform"])
@pytest.mark.parametrize("shape", [(7, 5), (), (3,), (3, 2), (2, 2, 1), (0, 3), (2, 3, 1)])
def test_an_expansion_to_a_shape_that_does_not_fit_is_refused(row, shape):
    q = {**ROWS, **IMPROPER}[row]()
    said = re.escape(f"{row}: expected expand to a shape that (2, 3) broadcasts to, got {shape}; write .expand((10, 2,")
    with pytest.raises(ValueError, match=said):
        q.expand(shape)
    assert q.expand([4, 2, 3]).batch_shape == (4, 2, 3) and q.expand_by((4,)).batch_shape == (4, 2, 3)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("row", [*WITH_DENSITY, *IMPROPER])
def test_a_value_of_a_shape_that_does_not_fit_is_refused(row, validate):
    with numpyro.validation_enabled(validate):
        q = {**ROWS, **IMPROPER}[row]()
        for shape in ((7, 5), (6,), (3, 2), (2, 2, 4), (0,)):
            for log_prob in (q.log_prob, jax.jit(q.log_prob)):
                with pytest.raises(
                    ValueError, match=rf"\(2, 3\) of the distribution .*got shape {re.escape(str(shape))}"
                ):
                    log_prob(jnp.full(shape, 0.5))


@pytest.mark.slow
def test_a_value_of_a_low_rank_weight_is_broadcast_as_any_other():
    q = vd.LowRankNormal(LOC, 0.0, np.full((1, 2, 3), 0.5, np.float32), validate_args=False)
    for shape in ((3,), (1, 3), (4, 1, 3)):
        value = jax.random.normal(KEY, shape)
        whole = jnp.broadcast_to(value, jnp.broadcast_shapes(shape, (2, 3)))
        assert q.log_prob(value).shape == whole.shape[:-2]
        np.testing.assert_allclose(q.log_prob(value), q.log_prob(whole), rtol=1e-5)


def model(x):
    w = numpyro.sample("w", dist.Normal(jnp.zeros((1, 2)), 1.0).to_event(2))
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        return numpyro.sample("y", dist.Normal(x * w.sum() + shift, 1.0))


@pytest.mark.slow
def test_a_sample_shape_of_guides_and_predictions_is_checked():
    x = jnp.ones(4)
    one = AutoMeanField(model, where="w")
    several = mixed_guide(model, one, AutoMeanField(model, where="shift"))
    svi = numpyro.infer.SVI(model, several, numpyro.optim.Adam(0.01), vd.TraceVD_ELBO(analytic_only=False))
    params = svi.get_params(svi.init(KEY, x))
    y = vd.predictive_distribution(KEY, params, model, several, x, num_samples=2)["y"]
    for kind, (value, error, _) in NO_SHAPES.items():
        for guide in (one, several):
            with pytest.raises(error, match=r"\w+.sample_posterior: expected (every size in )?sample_shape to be "):
                guide.sample_posterior(KEY, params, sample_shape=value)
        if kind not in ("number", "array of sizes"):
            with pytest.raises(
                (TypeError, ValueError), match=r"^site 'y': expected .*sample_shape to be .*write 10 or"
            ):
                y.sample(KEY, value)
    assert y.sample(KEY, 3).shape == y.sample(KEY, (3,)).shape == (3, 4)
