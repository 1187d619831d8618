"""Programs of predictions that are kept for the next call: the numbers of those that are not, and no compilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen
from jax import random

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField
from pyro_vd.numpyro.predict import programs
from pyro_vd.numpyro.predict.programs import program_of

KEY = random.key(0)
X = random.normal(random.key(1), (5, 3))


@pytest.fixture(autouse=True)
def none_kept():
    programs._KEPT.clear()


@pytest.fixture
def compilations():
    """One entry for each program that XLA compiles."""
    found: list[dict] = []

    def note(event, duration, **about):
        if event.endswith("backend_compile_duration"):
            found.append(about)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def called(times):
    """A function of Python within a program, whose text does not say which it is."""
    return lambda x, y: jax.pure_callback(
        lambda a: np.asarray(a) * np.float32(times),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        x,
        vmap_method="sequential",
    )


ONES, RAMP = np.ones(3, np.float32), np.arange(3, dtype=np.float32)
# Pairs of functions of two arrays, with the arrays that each is called with.
PAIRS = {
    "a number": (lambda x, y: x * 2.0, lambda x, y: x * 3.0),
    "an array of NumPy": (lambda x, y: x * ONES, lambda x, y: x * RAMP),
    "an array": (lambda x, y: x * jnp.asarray(ONES), lambda x, y: x * jnp.asarray(RAMP)),
    "an array in a loop": (
        lambda x, y: jax.lax.map(lambda row: row * jnp.asarray(ONES), x),
        lambda x, y: jax.lax.map(lambda row: row * jnp.asarray(RAMP), x),
    ),
    "an array in a program": (
        lambda x, y: jax.jit(lambda x: x * jnp.asarray(ONES))(x),
        lambda x, y: jax.jit(lambda x: x * jnp.asarray(RAMP))(x),
    ),
    "which argument is used": (lambda x, y: x + 1, lambda x, y: y + 1),
    "which constant is used": (
        lambda x, y: (x + jnp.asarray(ONES), jnp.sum(jnp.asarray(RAMP)))[0],
        lambda x, y: (jnp.sum(jnp.asarray(ONES)), x + jnp.asarray(RAMP))[1],
    ),
    "the names of results": (lambda x, y: {"a": x, "b": y}, lambda x, y: {"c": x, "b": y}),
    "the order of results": (lambda x, y: [x, y], lambda x, y: [y, x]),
    "a result that is an argument": (lambda x, y: [x, x], lambda x, y: [x, y]),
    "a function of Python": (called(2), called(3)),
    "a weak type": (lambda x, y: jnp.exp(jnp.asarray(2.0)), lambda x, y: jnp.exp(jnp.asarray(2.0, jnp.float32))),
    "precision": (lambda x, y: jnp.dot(x, y.T), lambda x, y: jnp.dot(x, y.T, precision="highest")),
}
ARRAYS = [(X, X + 1), (np.asarray(X[:4]), X[:4].astype(jnp.float16))]


@pytest.mark.parametrize("what", PAIRS)
def test_a_kept_program_is_that_of_the_function(what):
    for function in (*PAIRS[what], PAIRS[what][0]):
        for x, y in ARRAYS:
            found, expected = program_of(function)(x, y), jax.jit(function)(x, y)
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(ours, theirs)
                assert (ours.dtype, ours.weak_type, ours.committed) == (
                    theirs.dtype,
                    theirs.weak_type,
                    theirs.committed,
                )


def test_keys_options_and_tracers():
    """What is no array is taken as it is; within a program of the user this is a part of it."""

    def draw(key, shape, options):
        return options["times"] * random.normal(key, shape)

    for times in (2, 3):
        expected = times * random.normal(KEY, (2,))
        np.testing.assert_allclose(program_of(draw)(KEY, (2,), {"times": times}), expected, rtol=1e-6)
        inner = jax.jit(lambda key, times=times: program_of(draw)(key, (2,), {"times": times}))
        np.testing.assert_allclose(inner(KEY), expected, rtol=1e-6)
        closed = jax.vmap(lambda a, times=times: program_of(lambda x: times * x * a)(X))(jnp.arange(2.0))
        np.testing.assert_allclose(closed[1], times * X, rtol=1e-6)


def test_few_are_kept_the_latest(monkeypatch, compilations):
    monkeypatch.setattr(programs, "MOST_KEPT", 2)
    functions = [lambda x, own=own: x * own for own in (2.0, 3.0, 4.0)]
    for own in (0, 1, 0, 2):
        program_of(functions[own])(X)
    assert len(programs._KEPT) == 2
    compilations.clear()
    program_of(functions[0])(X), program_of(functions[2])(X)
    assert not compilations
    program_of(functions[1])(X)
    assert len(compilations) == 1


@pytest.mark.parametrize("setting", ["jax_debug_nans", "jax_debug_infs", "jax_disable_jit"])
def test_where_programs_are_debugged_none_is_kept(setting):
    jax.config.update(setting, True)
    try:
        np.testing.assert_allclose(program_of(lambda x: x * 2)(X), X * 2)
        if setting == "jax_debug_nans":
            with pytest.raises(FloatingPointError):
                program_of(lambda x: jnp.log(-1 - x**2))(X)
    finally:
        jax.config.update(setting, False)
    assert not programs._KEPT


NET = linen.Dense(2)
BNN = vd.BayesianModule(NET.bind(NET.init(KEY, X)), dist.Normal(0.0, 1.0), where=lambda name, _: "kernel" in name)


def model_of(scale, times):
    """A model made anew, which closes over a number and an array."""

    def model(x, y=None):
        f = BNN(x) * times
        with vd.data_plate(50, len(x)):
            numpyro.sample("y", dist.Normal(f, scale).to_event(1), obs=y)

    return model


def predict(how, params, x, scale=1.0, times=None):
    model = model_of(scale, jnp.ones(2) if times is None else times)
    guide = AutoMeanField(model)
    options = {"batch_size": 3, "num_samples": 3}
    if how == "draws":
        return vd.posterior_predictive(KEY, params(guide, model), model, guide, x, **options)["y"]
    return vd.predictive_distribution(KEY, params(guide, model), model, guide, x, mode=how, **options)["y"].mean


def params_of(times):
    def params(guide, model):
        svi = numpyro.infer.SVI(model, guide, numpyro.optim.SGD(1.0), vd.TraceVD_ELBO())
        return {name: times * value for name, value in svi.get_params(svi.init(KEY, X, X[:, :2])).items()}

    return params


@pytest.mark.slow
@pytest.mark.parametrize("how", ["weights", "draws", "local", "moments"])
def test_the_next_prediction_compiles_nothing_and_is_that_of_its_own_values(how, compilations):
    """Of another model with the same text: other parameters, inputs and arrays; a number is another text."""
    times = jnp.array([1.0, 3.0])
    first = predict(how, params_of(1.0), X)
    compilations.clear()
    second = predict(how, params_of(1.5), X + 1, times=times)
    assert not compilations and not np.array_equal(first, second)
    third = predict(how, params_of(1.5), X + 1, scale=2.0, times=times)
    programs._KEPT.clear()
    np.testing.assert_array_equal(second, predict(how, params_of(1.5), X + 1, times=times))
    programs._KEPT.clear()
    np.testing.assert_array_equal(third, predict(how, params_of(1.5), X + 1, scale=2.0, times=times))
