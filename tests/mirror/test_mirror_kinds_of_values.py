"""Values of the wrong kind: complex, integer and boolean parameters, truth values for numbers, numbers for names."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen, nnx

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoSparseVD

KEY = jax.random.key(0)
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
Y = X[:, 0]
KINDS = {"complex64": complex, "int32": int, "bool": bool}


def equinox_net(name, dtype):
    net = eqx.nn.Linear(3, 1, key=KEY)
    where = lambda n: getattr(n, name)  # noqa: E731
    return eqx.tree_at(where, net, where(net).astype(dtype))


def linen_net(name, dtype):
    net = linen.Dense(1)
    params = {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}
    return net.bind({"params": params | {name: params[name].astype(dtype)}})


def nnx_net(name, dtype):
    net = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    setattr(net, name, nnx.Param(jnp.ones(getattr(net, name).shape, dtype)))
    return net


def program(net):
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y=None):
        mean = bnn(x)[:, 0]
        with vd.data_plate(40, len(x)):
            return numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = AutoSparseVD(model)
    return bnn, model, guide, numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.01), vd.TraceVD_ELBO())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bias", "weight"])
@pytest.mark.parametrize("make", [equinox_net, linen_net, nnx_net])
def test_a_net_with_parameters_that_cannot_be_trained_is_refused(make, name, kind):
    if make is equinox_net and kind != "complex64":
        return  # equinox takes arrays of floating point for parameters, and no others
    name = name if make is equinox_net or name == "bias" else "kernel"
    said = rf"'net': expected parameter '{name}' of the net to be real and of floating point, got {kind}; write "
    with pytest.raises(TypeError, match=said):
        bnn = vd.BayesianModule(make(name, KINDS[kind]), dist.Normal(0.0, 1.0))
        numpyro.handlers.seed(bnn, 0)(X)  # of linen: layers are known from the first call on


@pytest.fixture(scope="module")
def trained():
    bnn, model, guide, svi = program(equinox_net("bias", float))
    state = svi.init(KEY, X, Y)
    return bnn, model, guide, svi, state, svi.get_params(state)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_another_kind_than_trained_are_refused(trained, kind):
    bnn, model, guide, svi, _, params = trained
    for name in params:
        wrong = params | {name: jnp.ones_like(params[name], KINDS[kind])}
        calls = (
            lambda wrong=wrong: svi.loss.loss(KEY, wrong, model, guide, X, Y),
            lambda wrong=wrong: vd.posterior_predictive(KEY, wrong, model, guide, X, num_samples=1),
            lambda wrong=wrong: vd.prune(bnn, guide, params=wrong),
        )
        for call in calls:
            with pytest.raises(
                TypeError, match=rf"parameter '{name}': expected its value to be real.* got {kind}; write"
            ):
                call()


TRUTH = {"jax": jnp.array(True), "numpy": np.array(True), "numpy.bool_": np.True_, "Python": True}
NO_NUMBERS = TRUTH | {"complex": 1j, "jax complex": jnp.array(1j), "numpy complex": np.complex64(1)}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_a_kl_weight_that_is_no_number_is_refused(trained, kind):
    *_, svi, state, _ = trained
    value = NO_NUMBERS[kind]
    with pytest.raises(ValueError, match=r"^kl_weight: expected a finite number >= 0, got "):
        vd.TraceVD_ELBO(kl_weight=value)
    with pytest.raises(ValueError, match=r"^kl_weight: expected a finite number >= 0, got "):
        svi.update(state, X, Y, kl_weight=value)
    with pytest.raises(
        ValueError, match=r"^kl_weight: expected a finite number >= 0, got an array of (bool|complex64)"
    ):
        jax.eval_shape(lambda weight: svi.update(state, X, Y, kl_weight=weight), value)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1, 0.5, np.float16(0.5), jnp.asarray(1), jnp.asarray(0.5, jnp.bfloat16)])
def test_a_kl_weight_of_any_real_type_is_taken(trained, weight):
    _, model, guide, svi, _, params = trained
    terms = svi.loss.terms(KEY, params, model, guide, X, Y, kl_weight=weight)
    np.testing.assert_allclose(terms.loss, terms.data + float(weight) * terms.kl_total, rtol=1e-5)


BAD = {"label": (X, np.where(Y > 0.5, np.nan, Y)), "infinite label": (X, np.where(Y > 0.5, np.inf, Y)),
       "x": (np.where(X > 0.9, np.nan, X), Y)}  # fmt: skip


@pytest.mark.parametrize("step", ["update", "stable_update", "evaluate"])
@pytest.mark.parametrize("kind", BAD)
def test_a_step_that_is_not_compiled_names_what_is_not_finite(trained, kind, step):
    *_, svi, state, params = trained
    where = 0 if kind == "x" else 1
    with numpyro.validation_enabled(False):
        with pytest.raises(
            ValueError, match=rf"^site 'y': expected a finite .* data argument {where} holds \d+ NaN or inf"
        ):
            getattr(svi, step)(state, *BAD[kind])
    assert all(bool(jnp.isfinite(value).all()) for value in svi.get_params(state).values())
    again, loss = svi.update(state, X, Y)  # as if nothing had been
    assert bool(jnp.isfinite(loss)) and all(bool((params[n] != v).any()) for n, v in svi.get_params(again).items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_particles": 2}, {"num_particles": 2, "vectorize_particles": True},
                                     {"estimator": "shared"}, {"estimator": "flipout"}])  # fmt: skip
def test_every_estimator_names_it(options):
    _, model, guide, _ = program(equinox_net("bias", float))
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.01), vd.TraceVD_ELBO(**options))
    state = svi.init(KEY, X, Y)
    with numpyro.validation_enabled(False), pytest.raises(ValueError, match="data argument 1 holds 2 NaN"):
        svi.update(state, *BAD["label"])
    with pytest.raises(ValueError, match="log_sigma2 of site 'net.weight' holds 3 NaN or infinite of 3"):
        params = svi.get_params(state)
        params["auto.log_sigma2s.net.weight"] = jnp.full((1, 3), jnp.inf)
        jax.grad(lambda params: svi.loss.loss(KEY, params, model, guide, X, Y))(params)


@pytest.mark.slow
def test_a_compiled_step_cannot_raise_and_its_stable_form_keeps_the_state(trained):
    *_, svi, state, params = trained
    with numpyro.validation_enabled(False):
        after, loss = jax.jit(svi.update)(state, *BAD["label"])
        kept, lost = jax.jit(svi.stable_update)(state, *BAD["label"])
    assert bool(jnp.isnan(loss)) and bool(jnp.isnan(lost)) and bool(jnp.isnan(svi.get_params(after)["net.bias"]).all())
    assert all(bool((value == params[name]).all()) for name, value in svi.get_params(kept).items())


@pytest.mark.parametrize("key", [0, np.int64(1), ("net", "weight"), None, b"net.weight"])
def test_keys_that_are_no_names_are_refused(trained, key):
    bnn, _, guide, _, _, params = trained
    posteriors = guide.posteriors(params)
    q = posteriors["net.weight"]
    mask = jnp.ones((1, 3), bool)
    calls = {
        "keep_masks": lambda: vd.keep_masks({key: q}),
        "keep_masks of shares": lambda: vd.keep_masks({key: q}, sparsity={key: 0.5}),
        "prune": lambda: vd.prune(bnn, {**posteriors, key: q}, params=params),
        "sparsity_report": lambda: vd.sparsity_report({**posteriors, key: q}),
        "weight_bits": lambda: vd.weight_bits({**posteriors, key: q}),
        "keep_zeros": lambda: vd.keep_zeros({"net.weight": mask, key: mask}),
    }
    for call in calls.values():
        with pytest.raises(
            TypeError, match=r"^(guide|keep_zeros): expected the names of sites for keys, got .*; write "
        ):
            call()
    with pytest.raises(ValueError, match=r"^sparsity: expected sites or patterns of \['1'\], got"):
        vd.keep_masks({"1": q}, sparsity={key: 0.5})


@pytest.mark.parametrize(
    "params", [{"layers": [{"kernel": 1}, {"kernel": 1}]}, {"layers": {0: {"kernel": 1}, 1: {"kernel": 1}}}]
)
def test_masks_find_parameters_under_whole_numbers(params):
    params = jax.tree.map(lambda _: jnp.ones(2), params)
    kept = vd.keep_zeros({"net.layers.1.kernel": jnp.array([True, False])})
    found, _ = kept.update(params, kept.init(params), params)
    assert found["layers"][0]["kernel"].tolist() == [1, 1] and found["layers"][1]["kernel"].tolist() == [1, 0]
