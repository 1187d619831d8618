"""TraceVD_ELBO on NumPyro: the loss and gradients of the Pyro side, and how it trains under jit."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyro_vd as torch_vd
import pyro_vd.numpyro as vd
from helpers.guide_cases import NAMES
from helpers.mirror_nets import KEY, images, perceptron, program
from helpers.mirror_parity import Noise, Pair, assert_same_gradients, assert_same_terms, precision
from pyro_vd.numpyro.estimators import ESTIMATORS

OPTIONS = {
    "AutoVariationalDropout": [{}, {"granularity": "unit"}, {"granularity": "layer"}, {"correlated": True},
                               {"correlated": True, "granularity": "layer"}, {"correlated": True, "unit_dim": 0}],
    "AutoGaussianDropout": [{"dropout_rate": 0.3}, {"dropout_rate": 0.3, "correlated": True}],
    "AutoSparseVD": [{"kl": kl} for kl in ("sigmoid", "exact", "cubic", "lower_bound")] + [{"zero_above": -1.0}],
    "AutoBernoulliDropout": [{"dropout_rate": 0.3}, {"unit_dim": 0}],
    "AutoConcreteDropout": [{"temperature": 0.4}],
    "AutoGroupSparse": [{}, {"unit_dim": 0}],
    "AutoLowRank": [{"rank": 2}],
}  # fmt: skip
CASES = [(name, options) for name in NAMES for options in OPTIONS.get(name, [{}])]
FLIPOUT = {"AutoSparseVD", "AutoMeanField", "AutoARD"}


def has_estimator(name, options, estimator):
    independent = name in FLIPOUT or (
        name.endswith(("VariationalDropout", "GaussianDropout")) and "correlated" not in options
    )
    return estimator != "flipout" or independent


# Options that change the KL or how many noise ratios there are, but not the noise, need one estimator.
SAME_NOISE = (
    {"granularity": "unit"}, {"granularity": "layer"}, {"correlated": True, "granularity": "layer"},
    {"kl": "exact"}, {"kl": "cubic"}, {"kl": "lower_bound"}, {"zero_above": -1.0},
)  # fmt: skip
PRECISIONS = {"float64": 1e-6, "float32": 1e-5}
TABLE = [(family, options, ("local",) if options in SAME_NOISE else ESTIMATORS) for family, options in CASES]


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family, options, estimators", TABLE, ids=lambda v: "" if isinstance(v, tuple) else str(v))
def test_terms_and_every_gradient_are_those_of_the_pyro_side(family, options, estimators, dtype, monkeypatch):
    """For every family and estimator: data term, KL of each site, loss and the gradient of every parameter."""
    with precision(dtype):
        pair, noise, drawn = Pair(family, options, dtype), Noise(monkeypatch), []
        known = [estimator for estimator in estimators if has_estimator(family, options, estimator)]
        ours = []
        for estimator in known:
            drawn.append(noise.again().drawn)
            ours.append(pair.torch_terms(torch_vd.TraceVD_ELBO(estimator, kl_weight=0.7)))
        their_drawn = []
        theirs = pair.jax_terms(
            *(vd.TraceVD_ELBO(estimator, kl_weight=0.7) for estimator in known),
            before=lambda: their_drawn.append(noise.again().drawn),
        )
        assert their_drawn == drawn and all(sum(numbers.values()) > 0 for numbers in drawn)
        for (terms, gradients), (other_terms, other_gradients) in zip(ours, theirs, strict=True):
            assert_same_terms(terms, other_terms, PRECISIONS[dtype])
            assert_same_gradients(gradients, other_gradients, PRECISIONS[dtype])
            assert any(np.abs(value).max() > 1e-3 for value in gradients.values())
        for estimator in set(estimators) - set(known):
            for elbo, run in (
                (torch_vd.TraceVD_ELBO(estimator), pair.torch_terms),
                (vd.TraceVD_ELBO(estimator), pair.jax_terms),
            ):
                with pytest.raises(ValueError, match="expected an estimator that .* has a form for"):
                    run(elbo)


def test_the_table_has_every_family_with_every_estimator():
    assert list(ESTIMATORS) == list(torch_vd.estimators.ESTIMATORS)
    assert {family for family, _, estimators in TABLE if estimators == ESTIMATORS} == set(NAMES)


def test_particles_are_averaged(monkeypatch):
    """The mean of three evaluations, each with its own key, whichever way they are run."""
    with precision("float64"):
        pair = Pair("AutoSparseVD", {})
        keys = jax.random.split(KEY, 3)

        def terms(key, elbo):
            run = jax.jit(lambda key: elbo.terms(key, pair.params, pair.other_model, pair.other_guide, *pair.arrays))
            return run(key)

        single = [terms(key, vd.TraceVD_ELBO()) for key in keys]
        assert np.std([term.loss for term in single]) > 1e-3
        for vectorize in (False, True):
            several = terms(KEY, vd.TraceVD_ELBO(num_particles=3, vectorize_particles=vectorize))
            np.testing.assert_allclose(several.loss, np.mean([term.loss for term in single]), rtol=1e-10)
            np.testing.assert_allclose(several.nll["y"], np.mean([term.data for term in single]), rtol=1e-10)
            np.testing.assert_allclose(several.kl_total, single[0].kl_total, rtol=1e-10)


def test_terms_are_a_pytree_of_data_and_kl_by_site():
    _, model, guide, svi = program(perceptron("nnx", (64, 5, 10)))
    x, y = images()
    params = svi.get_params(jax.jit(svi.init)(KEY, x, y))
    terms = jax.jit(lambda p: svi.loss.terms(KEY, p, model, guide, x, y, kl_weight=0.25))(params)
    assert set(terms.nll) == {"y"} and set(terms.kl) == set(guide.weight_sites)
    kl = {site: vd.kl.kl_log_uniform(guide.log_alpha(params, site)).sum() for site in guide.weight_sites}
    for site, value in kl.items():
        np.testing.assert_allclose(terms.kl[site], value, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, terms.data + 0.25 * terms.kl_total, rtol=1e-6)
    np.testing.assert_allclose(terms.negative_elbo, terms.data + terms.kl_total, rtol=1e-6)
    assert terms.kl_weight == 0.25


def test_a_warm_up_of_the_kl_does_not_retrace():
    """``kl_weight`` of a step: the loss of that weight, under jit, with another number each step, traced once."""
    _, model, guide, svi = program(perceptron("nnx", (64, 5, 10)), elbo=vd.TraceVD_ELBO(kl_weight=0.5))
    x, y = images()
    state = jax.jit(svi.init)(KEY, x, y)
    traced = []

    @jax.jit
    def update(state, kl_weight):
        traced.append(1)
        return svi.update(state, x, y, kl_weight=kl_weight)

    key = jax.random.split(state.rng_key)[1]
    terms = jax.jit(lambda params: svi.loss.terms(key, params, model, guide, x, y))(svi.get_params(state))
    assert terms.kl_weight == 0.5
    for kl_weight in (0.0, 0.1, 1.0):
        np.testing.assert_allclose(update(state, kl_weight)[1], terms.data + kl_weight * terms.kl_total, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(svi.update)(state, x, y)[1], terms.loss, rtol=1e-5)
    assert len(traced) == 1
    weights = jnp.array([0.0, 0.1])
    _, losses = jax.lax.scan(lambda s, w: (s, svi.update(s, x, y, kl_weight=w)[1]), state, weights)
    np.testing.assert_allclose(losses, terms.data + weights * terms.kl_total, rtol=1e-5)
    with pytest.raises(AttributeError, match=r"a compiled step would not see; write svi.update\(svi_state"):
        svi.loss.kl_weight = 1.0
    for weight in (-1.0, float("nan"), "1", jnp.ones(2)):
        with pytest.raises(ValueError, match="kl_weight: expected a"):
            vd.TraceVD_ELBO(kl_weight=weight)
        with pytest.raises(ValueError, match="kl_weight: expected a"):
            svi.update(state, x, y, kl_weight=weight)


def weight_model(x):
    w = numpyro.sample("w", dist.Normal(jnp.zeros((3, 1)), 2.0).to_event(2))
    scale = numpyro.sample("scale", dist.Gamma(2.0, 2.0))
    with numpyro.plate("data", 12, subsample_size=4):
        numpyro.sample("y", dist.Normal((x @ w).squeeze(-1), scale), obs=jnp.ones(4))


@pytest.mark.filterwarnings("ignore:site 'w'")  # which a guide of plain Normals draws once a step
def test_a_model_without_random_weights_has_the_loss_of_numpyro():
    """Plates, subsampling and a site of another support, under numpyro's own mean-field ELBO."""
    x = jax.random.normal(KEY, (4, 3))
    guide = AutoNormal(weight_model)
    svi = SVI(weight_model, guide, optax.adam(1e-3), TraceMeanField_ELBO())
    params = svi.get_params(jax.jit(svi.init)(KEY, x))

    def loss(elbo):
        return jax.jit(lambda params: elbo.loss(KEY, params, weight_model, guide, x))(params)

    with pytest.raises(ValueError, match="site 'scale': expected a pair of distributions with a KL rule"):
        vd.TraceVD_ELBO().loss(KEY, params, weight_model, guide, x)
    np.testing.assert_allclose(loss(vd.TraceVD_ELBO(analytic_only=False)), loss(TraceMeanField_ELBO()), rtol=1e-5)


def simple_guide(posterior=None, name="w"):
    def guide(x, y=None):
        loc = numpyro.param("loc", jnp.ones((3, 1)))
        numpyro.sample(name, (posterior or vd.DropoutNormal)(loc, log_sigma2=-2.0).to_event(2))

    return guide


def simple_model(x, y=None):
    w = numpyro.sample("w", vd.ImproperLogUniform().expand([3, 1]).to_event(2))
    numpyro.sample("y", dist.Normal(x @ w, 1.0).to_event(2), obs=jnp.zeros((len(x), 1)))


def test_bad_programs():
    x, params = jnp.ones((5, 3)), {"loc": jnp.ones((3, 1))}
    loss = vd.TraceVD_ELBO().loss

    def two_sites(x):
        simple_guide()(x)
        simple_guide(name="v")(x)

    def scaled(x):
        with handlers.scale(scale=0.1):
            simple_model(x)

    def discrete(x):
        numpyro.sample("w", dist.Bernoulli(0.5 * jnp.ones((3, 1))).to_event(2))

    with pytest.raises(ValueError, match=r"site 'w': expected a guide that samples every latent.*samples \['v'\]"):
        loss(KEY, params, simple_model, simple_guide(name="v"), x)
    with pytest.raises(ValueError, match=r"site 'v': expected a guide with the sites of the model, .*, got one more"):
        loss(KEY, params, simple_model, two_sites, x)
    with pytest.raises(ValueError, match="site 'w': expected the same scale in model and guide, got 0.1 and 1.0"):
        loss(KEY, params, scaled, simple_guide(), x)
    with pytest.raises(NotImplementedError, match="site 'w': expected a reparameterised guide distribution"):
        loss(KEY, params, simple_model, discrete, x)
    for key in (None, 0, jnp.zeros(2)):
        with pytest.raises(ValueError, match="TraceVD_ELBO: expected a random key"):
            loss(key, params, simple_model, simple_guide(), x)
    for number in (0, 1.5):
        with pytest.raises(ValueError, match="num_particles: expected a whole number >= 1"):
            vd.TraceVD_ELBO(num_particles=number)
    with pytest.raises(ValueError, match="estimator: expected one of"):
        vd.TraceVD_ELBO("global")


def test_what_is_not_finite_is_named_and_costs_no_parameter():
    x, params = jnp.ones((5, 3)), {"loc": jnp.ones((3, 1))}
    bad_x, bad = x.at[1, 2].set(jnp.nan), {"loc": params["loc"].at[0, 0].set(jnp.inf)}
    elbo = vd.TraceVD_ELBO()
    # numpyro 0.22 validates the likelihood's NaN, and the model fails; before it the loss is one.
    failed = "the model failed on non-finite input|site 'y': expected a finite negative log likelihood, got nan"
    with pytest.raises(ValueError, match=f"^({failed}): data argument 0 holds 1 NaN or infinite of 15 values"):
        elbo.loss(KEY, params, simple_model, simple_guide(), bad_x)
    with pytest.raises(ValueError, match="loc of site 'w' holds 1 NaN or infinite of 3 values"):
        elbo.checked_terms(KEY, bad, simple_model, simple_guide(), x)
    svi = SVI(simple_model, simple_guide(), optax.adam(0.1), elbo)
    state = svi.init(KEY, x)
    after, loss = jax.jit(svi.stable_update)(state, bad_x)
    assert not jnp.isfinite(loss)
    np.testing.assert_array_equal(svi.get_params(after)["loc"], svi.get_params(state)["loc"])


def test_an_operation_without_a_rule_warns_once_over_traces():
    def model(x):
        w = numpyro.sample("w", vd.ImproperLogUniform().expand([3, 1]).to_event(2))
        numpyro.sample("y", dist.Normal(vd_sin(w, x), 1.0).to_event(2), obs=jnp.zeros((len(x), 1)))

    elbo = vd.TraceVD_ELBO()
    x, params = jnp.ones((5, 3)), {"loc": jnp.ones((3, 1))}
    with pytest.warns(UserWarning, match="site 'w': expected an operation with a rule .* got sin"):
        elbo.loss(KEY, params, model, simple_guide(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo.loss(KEY, params, model, simple_guide(), x)
    with pytest.raises(ValueError, match="got sin"):
        vd.TraceVD_ELBO(strict=True).loss(KEY, params, model, simple_guide(), x)


def vd_sin(w, x):
    import quax

    return quax.quaxify(lambda w, x: x @ jnp.sin(w))(w, x)


def test_reuse_and_shared_sites_are_those_of_lrt():
    def model(x):
        w = numpyro.sample("w", vd.ImproperLogUniform().expand([3, 1]).to_event(2))
        numpyro.sample("y", dist.Normal(x @ w + x @ w, 1.0).to_event(2), obs=jnp.zeros((len(x), 1)))

    x, params = jnp.ones((5, 3)), {"loc": jnp.ones((3, 1))}
    with pytest.raises(ValueError, match="expected one use of the weight"):
        vd.TraceVD_ELBO().loss(KEY, params, model, simple_guide(), x)
    for options in ({"shared_sites": ["w"]}, {"reuse": "independent"}, {"estimator": "shared"}):
        assert jnp.isfinite(vd.TraceVD_ELBO(**options).loss(KEY, params, model, simple_guide(), x))
