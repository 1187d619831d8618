"""Which value a site of a NumPyro guide gets: a random weight, a draw, or the mean."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import quax
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import helpers.mirror_compiling  # noqa: F401
import pyro_vd.numpyro as vd
from pyro_vd.numpyro.handlers import EstimatorMessenger

LOC = jnp.arange(1.0, 7.0).reshape(2, 3)
X = jnp.array([[1.0, -1.0], [1.0, -1.0], [0.5, 2.0]])
Q = vd.DropoutNormal(LOC, log_sigma2=-jnp.ones((2, 3)))
BINARY = vd.BernoulliDropout(LOC, 0.5)
HANDLERS = {"local": vd.lrt, "per_example": vd.per_example, "flipout": vd.flipout}


def guide(x=None):
    numpyro.sample("w", Q.to_event(2))
    numpyro.sample("b", dist.Normal(jnp.zeros(3), 1.0).to_event(1))


def model(x):
    w = numpyro.sample("w", vd.ImproperLogUniform().expand((2, 3)).to_event(2))
    b = numpyro.sample("b", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w + b, 1.0).to_event(2), obs=jnp.zeros((3, 3)))


def values(fn, seed=0):
    trace = handlers.trace(handlers.seed(fn, seed)).get_trace()
    return {name: site["value"] for name, site in trace.items()}


@pytest.mark.parametrize("estimator", HANDLERS)
def test_weights_are_random_and_every_other_site_is_left_alone(estimator):
    found, plain = values(HANDLERS[estimator](guide)), values(guide)
    assert isinstance(found["w"], vd.RandomWeight) and found["w"].site == "w"
    assert found["w"].state.estimator == estimator
    assert jnp.array_equal(found["w"].loc, LOC) and jnp.array_equal(found["w"].variance, Q.variance)
    assert jnp.array_equal(found["b"], plain["b"])  # with the key that it has without the handler
    assert isinstance(plain["w"], jax.Array)


def test_handler_is_a_context_manager_too_and_gives_each_site_a_key_of_its_own():
    with handlers.seed(rng_seed=0), vd.lrt():
        first, second = (numpyro.sample(name, Q.to_event(2)) for name in "ab")
    assert not jnp.isclose(X @ first, X @ second).any()
    explicit = jax.random.key(5)
    with vd.lrt():
        given = numpyro.sample("c", Q.to_event(2), rng_key=explicit)
    assert given.key is explicit


def test_step_is_the_same_for_the_same_seed_and_another_for_another():
    outputs = [X @ values(vd.lrt(guide), seed)["w"] for seed in (0, 0, 1)]
    assert jnp.array_equal(outputs[0], outputs[1]) and not jnp.isclose(outputs[0], outputs[2]).any()
    assert not jnp.isclose(outputs[0][0], outputs[0][1]).any()  # equal rows, noise of their own


def test_some_sites_stay_draws():
    def other():
        numpyro.sample("shared", Q.to_event(2))
        numpyro.sample("auxiliary", Q.to_event(2), infer={"is_auxiliary": True})
        numpyro.sample("observed", Q.to_event(2), obs=LOC)
        numpyro.sample("several", Q.to_event(2), sample_shape=(2,))
        numpyro.sample("normal", dist.Normal(LOC, 1.0).to_event(2))

    found = values(vd.lrt(other, shared_sites=["shared"]))
    assert all(isinstance(value, jax.Array) for value in found.values())
    assert all(isinstance(v, jax.Array) for v in values(EstimatorMessenger(guide, "shared")).values())
    conditioned = handlers.substitute(guide, {"w": LOC})
    assert values(vd.lrt(conditioned))["w"] is LOC


def test_options_reach_the_weight():
    weight = values(vd.lrt(guide, reuse="independent", strict=True))["w"]
    assert weight.state.reuse == "independent" and weight.state.strict
    plain = values(vd.lrt(guide))["w"]
    assert plain.state.reuse == "error" and not plain.state.strict


def test_warning_is_given_once_for_a_handler_over_all_its_traces():
    handler = vd.lrt(guide)
    absolute = quax.quaxify(jnp.abs)
    with pytest.warns(UserWarning, match="site 'w'.*got abs"):
        absolute(values(handler)["w"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        absolute(values(handler)["w"])
    with pytest.warns(UserWarning, match="got abs"):
        absolute(values(vd.lrt(guide))["w"])


def test_posterior_mean_is_given_to_every_latent_site():
    found = values(vd.posterior_mean(guide))
    assert jnp.array_equal(found["w"], LOC) and jnp.array_equal(found["b"], jnp.zeros(3))
    with vd.posterior_mean():
        assert jnp.array_equal(numpyro.sample("w", Q.to_event(2)), LOC)
        assert numpyro.sample("y", dist.Normal(0.0, 1.0), obs=3.0) == 3.0


def test_elbo_of_numpyro_with_an_analytic_kl_gives_the_loss_of_ours():
    local = jax.vmap(lambda k: TraceMeanField_ELBO().loss(k, {}, model, vd.lrt(guide), X))
    ours = jax.vmap(lambda k: vd.TraceVD_ELBO().loss(k, {}, model, guide, X))
    first, second = jax.jit(lambda keys: (local(keys), ours(keys)))(jax.random.split(jax.random.key(0), 4000))
    error = float(jnp.sqrt((first.var() + second.var()) / 4000))
    assert abs(float(first.mean() - second.mean())) < 4.9 * error  # fails by chance once in a million


def test_elbo_of_numpyro_that_needs_log_probs_of_weights_is_an_error_that_says_what_to_do():
    svi = SVI(model, vd.lrt(guide), optax.adam(0.1), Trace_ELBO())
    state = svi.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match=r"site 'w': .*shared_sites=\['w'\]"):
        svi.update(state, X)


BAD = {
    "no key": (lambda: vd.lrt(guide)(), "site 'w': expected a random key, got none.*handlers.seed"),
    "reuse": (lambda: vd.lrt(guide, reuse="yes"), "reuse: expected one of 'error', 'independent', 'shared', got 'yes'"),
    "estimator": (lambda: EstimatorMessenger(guide, "global"), "estimator: expected one of 'local'.*got 'global'"),
    "no flipout": (
        lambda: values(vd.flipout(lambda: numpyro.sample("w", BINARY))),
        r"site 'w': expected an estimator that BernoulliDropout has a form for \(local, shared, per_example\), got "
        r"'flipout'; .*shared_sites=\['w'\]",
    ),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_an_error_that_says_what_to_write(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_name_for_shared_sites_is_a_type_error():
    with pytest.raises(TypeError, match=r"expected a list of site names, got 'w'; write \['w'\]"):
        vd.lrt(guide, shared_sites="w")
