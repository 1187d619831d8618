"""What NumPyro asks of a distribution, of all those of this library, after its own test/test_distributions.py.

Statistical tests have a fixed key and bounds of 5 standard errors: together they fail by chance with odds below 1e-4.
"""

from __future__ import annotations

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.test_util import check_grads
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

import pyro_vd.numpyro as vd

pytestmark = pytest.mark.slow  # compiles many programs

SHAPE, KEY = (2, 3), jax.random.key(0)


def values(*shape, scale=0.7, shift=0.4):
    noise = np.random.default_rng(sum(shape) + len(shape)).standard_normal(shape)
    return jnp.asarray(scale * noise + shift, jnp.float32)


def between(*shape, low=0.2, high=0.6):
    return jnp.asarray(np.random.default_rng(5).uniform(low, high, shape), jnp.float32)


ROWS = {
    "DropoutNormal, additive": (vd.DropoutNormal, {"loc": values(*SHAPE), "log_sigma2": values(3)}, {}),
    "DropoutNormal": (vd.DropoutNormal, {"loc": values(*SHAPE), "log_alpha": values(2, 1)}, {"kl": "exact"}),
    "CorrelatedDropoutNormal": (
        vd.CorrelatedDropoutNormal, {"loc": values(*SHAPE), "log_alpha": values(3, shift=-1.0)}, {}),
    "BernoulliDropout": (vd.BernoulliDropout, {"loc": values(*SHAPE), "dropout_rate": between(3)}, {}),
    "ConcreteDropout": (
        vd.ConcreteDropout, {"loc": values(*SHAPE), "logit_dropout_rate": values(2)},
        {"unit_dim": 0, "temperature": 0.002}),
    "GroupNormal": (
        vd.GroupNormal, {"v_loc": values(*SHAPE), "v_log_sigma2": values(*SHAPE), "unit_loc": values(3),
                         "unit_log_sigma2": values(3, shift=-1.0)}, {}),
    "LowRankNormal": (
        vd.LowRankNormal, {"loc": values(*SHAPE), "log_sigma2": values(1, 3), "factor": values(2, *SHAPE)}, {}),
    "TruncatedLogUniform": (vd.TruncatedLogUniform, {"low": between(2), "high": 1 + between(3, 1)}, {}),
}  # fmt: skip
POSTERIORS = [row for row in ROWS if row != "TruncatedLogUniform"]
WITH_DENSITY = ["DropoutNormal, additive", "DropoutNormal", "LowRankNormal", "TruncatedLogUniform"]
ONE_WEIGHT = [row for row in POSTERIORS if not row.startswith("DropoutNormal")]


def make(row, **changed):
    cls, arguments, more = ROWS[row]
    return cls(**{**arguments, **changed}, **more)


def draw(row, shape=(), **changed):
    return make(row, **changed).sample(KEY, shape)


@pytest.mark.parametrize("row", ROWS)
def test_infer_shapes_are_those_of_an_instance(row):
    cls, arguments, _ = ROWS[row]
    q, shapes = make(row), {name: value.shape for name, value in arguments.items()}
    assert cls.infer_shapes(**shapes) == (q.batch_shape, q.event_shape)
    if row != "DropoutNormal, additive":  # whose second argument by place is another one
        assert cls.infer_shapes(*shapes.values()) == (q.batch_shape, q.event_shape)


@pytest.mark.parametrize("row", ROWS)
def test_constraints_and_the_arguments_with_a_gradient(row):
    cls, arguments, _ = ROWS[row]
    q = make(row)
    assert set(arguments) <= set(cls.arg_constraints) and q.has_rsample
    for name, constraint in cls.arg_constraints.items():
        assert isinstance(constraint, constraints.Constraint) and bool(jnp.all(constraint(getattr(q, name))))
    learned = set(cls.reparametrized_params)
    assert learned == set(cls.arg_constraints) - {"dropout_rate"}
    q.validate_args()
    assert set(q.get_args()) == set(cls.arg_constraints)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_draws_have_shape_dtype_and_support(row, dtype):
    q = make(row, **{name: value.astype(dtype) for name, value in ROWS[row][1].items()})
    for sample_shape in ((), (4,), (4, 1)):
        w = q.sample(KEY, sample_shape)
        assert w.shape == q.shape(sample_shape) and w.dtype == dtype
        assert bool(jnp.all(q.support(w))) and q.support.event_dim == q.event_dim
        assert q.rsample(KEY, sample_shape).shape == w.shape
    for moment in (q.mean, q.variance):
        assert moment.dtype == dtype and jnp.broadcast_shapes(moment.shape, q.shape()) == q.shape()


@pytest.mark.parametrize("row", ROWS)
def test_draws_have_the_mean_and_the_variance(row):
    q = make(row)
    draws = np.asarray(q.sample(KEY, (100_000,)), np.float64)
    root = len(draws) ** 0.5
    assert np.all(abs(draws.mean(0) - q.mean) < 5 * draws.std(0) / root + 1e-6)
    squares = (draws - np.asarray(q.mean, np.float64)) ** 2
    slack = 0.01 * q.variance if row == "ConcreteDropout" else 1e-6  # whose moments are those of the binary limit
    assert np.all(abs(squares.mean(0) - q.variance) < 5 * squares.std(0) / root + slack)


@pytest.mark.parametrize("row", ROWS)
def test_gradients_of_draws_by_finite_differences(row, x64):
    """For one key a draw is a smooth function of every argument that has a gradient."""
    cls, arguments, more = ROWS[row]
    more = {**more, **({"temperature": 0.4} if row == "ConcreteDropout" else {})}
    wide = {name: jnp.asarray(np.asarray(value), jnp.float64) for name, value in arguments.items()}
    learned = {name: value for name, value in wide.items() if name in cls.reparametrized_params}

    def function(learned):
        return cls(**{**wide, **learned}, **more).sample(KEY, (2,))

    check_grads(function, (learned,), order=1, modes=["rev"])


def test_a_gradient_in_the_rate_is_refused_under_every_transformation():
    loc, rate = values(*SHAPE), between(3)

    def loss(rate, loc=loc):
        return vd.BernoulliDropout(loc, rate).sample(KEY).sum()

    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss)), jax.grad(jax.jit(loss)), jax.jacfwd(loss),
                     jax.value_and_grad(lambda p: loss(jax.nn.sigmoid(p))), jax.vmap(jax.grad(loss))):  # fmt: skip
        with pytest.raises(ValueError, match="expected a dropout_rate that is given, got a gradient in it.*Concrete"):
            gradient(rate if "vmap" not in repr(gradient) else rate[None])
    of_loc = jax.jit(jax.grad(lambda loc, rate: loss(rate, loc)))(loc, rate)
    assert bool(jnp.isfinite(of_loc).all()) and bool((of_loc != 0).any())
    assert jax.grad(lambda r: loss(jax.lax.stop_gradient(r)))(rate).tolist() == [0, 0, 0]


@pytest.mark.parametrize("row", ["BernoulliDropout", "ConcreteDropout"])
def test_a_gradient_in_the_scale_of_the_prior_is_refused(row):
    q = make(row)

    def kl(mean, scale):
        return kl_divergence(q, dist.Normal(mean, scale).expand(SHAPE).to_event(2))

    with pytest.raises(ValueError, match=f"{row}: expected a Normal prior with a scale that is given.*AutoMeanField"):
        jax.jit(jax.grad(kl, 1))(0.1, 0.7)
    check_grads(lambda mean: kl(mean, 0.7), (0.1,), order=1, modes=["rev"], rtol=1e-2)


@pytest.mark.parametrize("row", WITH_DENSITY)
def test_log_prob_and_its_gradients(row, x64):
    cls, arguments, more = ROWS[row]
    wide = {name: jnp.asarray(np.asarray(value), jnp.float64) for name, value in arguments.items()}
    w = cls(**wide, **more).sample(KEY, (2,))
    log_prob = cls(**wide, **more).log_prob(w)
    assert log_prob.shape == (2, *cls(**wide, **more).batch_shape)
    check_grads(lambda arguments, w: cls(**arguments, **more).log_prob(w), (wide, w), order=1, modes=["rev"])


@pytest.mark.parametrize("row", [row for row in ONE_WEIGHT if row != "LowRankNormal"])
def test_a_density_that_is_missing(row):
    for error in (NotImplementedError, ValueError):
        with pytest.raises(error, match=f"{row}: expected a use of its analytic KL.*has no density"):
            make(row).log_prob(values(*SHAPE))


@pytest.mark.parametrize("row", ROWS)
def test_pytrees_and_transformations(row):
    cls, arguments, more = ROWS[row]
    q, expected = make(row), draw(row)
    leaves, tree = jax.tree.flatten(q)
    again = jax.tree.unflatten(tree, leaves)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves) and repr(again) == repr(q)
    np.testing.assert_array_equal(again.sample(KEY), expected)
    for duplicate in (copy.copy, copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))):
        np.testing.assert_array_equal(duplicate(q).sample(KEY), expected)
    np.testing.assert_allclose(jax.jit(lambda q: q.sample(KEY))(q), expected, rtol=1e-5, atol=1e-6)
    # A batch of instances: made by vmap, passed into jit, and sampled by vmap.
    factors = jnp.asarray([1.0, 1.1, 0.9])
    first = next(iter(arguments))
    several = jax.vmap(lambda f: cls(**{**arguments, first: f * arguments[first]}, **more))(factors)
    drawn = jax.jit(jax.vmap(lambda q: q.sample(KEY)))(several)
    for factor, one in zip(factors, drawn, strict=True):
        known = draw(row, **{first: factor * arguments[first]})
        np.testing.assert_allclose(one, known, rtol=1e-4, atol=1e-6)
    if row in WITH_DENSITY:
        per_instance = jax.vmap(lambda q: q.log_prob(expected))(several)
        assert per_instance.shape == (3, *q.batch_shape) and bool(jnp.isfinite(per_instance).any())
    mapped = jax.tree.map(lambda leaf: leaf + 0, q)
    assert type(mapped) is cls


@pytest.mark.parametrize("row", ["DropoutNormal", "DropoutNormal, additive", "TruncatedLogUniform"])
def test_expansion(row):
    q, w = make(row), draw(row)
    shape = (4, *q.batch_shape)
    for expanded in (q.expand(shape), q.expand(list(shape)), q.expand_by([4])):
        assert expanded.batch_shape == shape and expanded.sample(KEY).shape == shape
        np.testing.assert_allclose(expanded.log_prob(w), jnp.broadcast_to(q.log_prob(w), shape), rtol=1e-6)
    assert q.expand(q.batch_shape).batch_shape == q.batch_shape
    assert q.expand(shape).expand((5, *shape)).sample(KEY, (2,)).shape == (2, 5, *shape)
    assert q.expand(shape).to_event(2).event_shape == shape[1:]
    assert jax.tree.unflatten(*reversed(jax.tree.flatten(q.expand(shape)))).batch_shape == shape
    with pytest.raises(ValueError):
        q.expand((7, 5))


@pytest.mark.parametrize("row", ONE_WEIGHT)
def test_expansion_of_one_weight(row):
    assert make(row).expand(()).event_shape == SHAPE
    with pytest.raises(ValueError, match=r"expected one weight, got a batch of shape \(4,\)"):
        make(row).expand((4,))


@pytest.mark.parametrize("row", POSTERIORS)
def test_what_it_is_made_of_is_said(row):
    cls, arguments, more = ROWS[row]
    text = repr(make(row))
    assert text.startswith(f"{cls.__name__}(") and all(f"{name}: (" in text for name in arguments)
    assert all(f"{name}={value!r}" in text for name, value in more.items())


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_are_validated_where_it_is_asked_for(row, bad):
    cls, arguments, more = ROWS[row]
    for name, value in arguments.items():
        spoilt = {**arguments, name: value.at[(-1,) * value.ndim].set(bad)}
        words = "0 < low < high" if name in ("low", "high") else name
        with pytest.raises(ValueError, match=rf"{cls.__name__}: expected .*({words}).*, got "):
            cls(**spoilt, **more, validate_args=True)
    assert cls(**arguments, **more, validate_args=True).sample(KEY).shape == make(row).shape()
    # Values that are traced are passed over.
    jax.jit(lambda arguments: cls(**arguments, **more, validate_args=True).sample(KEY))(arguments)
    jax.jit(lambda: cls(**arguments, **more, validate_args=True).sample(KEY))()


NUMBERS = {
    "float": float, "int": int, "float32": np.float32, "float64": np.float64, "int64": np.int64, "0-dim": np.float32,
    "jax": jnp.float32,
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_are_arrays_of_no_dimension(kind, recwarn):
    as_kind = NUMBERS[kind]
    for cls, arguments in (
        (vd.DropoutNormal, {"loc": 2, "log_alpha": -1}),
        (vd.DropoutNormal, {"loc": 2, "log_sigma2": -1}),
        (vd.TruncatedLogUniform, {"low": 1, "high": 3}),
    ):
        expected = cls(**{name: jnp.asarray(value, jnp.float32) for name, value in arguments.items()})
        got = cls(**{name: as_kind(value) for name, value in arguments.items()})
        assert got.batch_shape == () and got.sample(KEY, (3,)).dtype == jnp.float32
        np.testing.assert_allclose(got.sample(KEY, (3,)), expected.sample(KEY, (3,)), rtol=1e-6)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(got))
        jax.vmap(lambda q: q.sample(KEY), axis_size=2, in_axes=None)(got)
    assert not recwarn.list
