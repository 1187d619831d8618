"""A guide before it has seen labels, or anything: no label is its site, and it knows the weights of bound nets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

import pyro_vd.numpyro as vd
from helpers.guide_cases import NAMES
from helpers.mirror_parity import NORMAL_PRIOR
from helpers.mirror_regression import KEY, N, X, Y, regression, same, weight_site
from pyro_vd.guides import numpyro as guides

LIBRARIES = ("unbound", "linen", "nnx", "equinox")


def prior_of(name):
    return dist.Normal(0.0, 1.0) if name in NORMAL_PRIOR else vd.ImproperLogUniform()


def start(svi):
    state = svi.init(KEY, X, Y)
    return svi.get_params(state), float(svi.evaluate(state, X, Y))


@pytest.mark.parametrize("plate", ["data_plate", "plate", "subsampling"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_prediction_before_training_has_no_label_for_a_weight_and_changes_nothing(library, plate):
    expected, expected_loss = start(regression(library, plate=plate)[-1])
    _, model, guide, svi = regression(library, plate=plate)
    predicted = vd.posterior_predictive(jax.random.key(5), expected, model, guide, X, num_samples=2)
    assert {name: value.shape[0] for name, value in predicted.items()} == {"y": 2}
    params, loss = start(svi)
    assert same(params, expected) and loss == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.parametrize("plate", ["data_plate", "plate", "subsampling"])
def test_a_call_before_training_has_no_label_for_a_weight_and_changes_nothing(plate):
    _, _, guide, svi = regression(plate=plate, noise=dist.HalfNormal(1.0))
    drawn = handlers.seed(guide, 3)(X)
    assert set(drawn) == {"net.weight", "scale"}
    expected, expected_loss = start(regression(plate=plate, noise=dist.HalfNormal(1.0))[-1])
    params, loss = start(svi)
    random = "scale_auto_loc"  # starts at the median of a few draws
    assert same({**params, random: expected[random]}, expected) and abs(params[random] - expected[random]) < 1
    assert loss == pytest.approx(expected_loss, rel=0.5)


def test_a_label_in_a_data_plate_of_the_whole_data_set_and_in_a_nested_plate_is_no_site_of_the_guide():
    bnn = regression()[0]

    def model(x, y=None):
        mean = bnn(x)
        with numpyro.plate("outputs", 2, dim=-1), vd.data_plate(N, len(x), dim=-2):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = guides.AutoMeanField(model)
    assert set(handlers.seed(guide, 0)(X)) == {"net.weight"}


def test_a_local_latent_of_a_minibatch_is_left_to_a_guide_by_hand():
    bnn = regression()[0]

    def model(x, y):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(40, len(x)):
            shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mean + shift, 1.0), obs=y)

    guide = guides.AutoMeanField(model)
    svi = SVI(model, guide, optax.adam(0.01), vd.TraceVD_ELBO())
    state = svi.init(KEY, X, Y)
    assert "net.weight" in guide.weight_sites and not any("shift" in name for name in svi.get_params(state))
    with pytest.raises(ValueError, match="site 'shift': expected a guide that samples every latent site.*'net.weight'"):
        svi.update(state, X, Y)


def test_a_global_latent_in_a_plate_that_observes_in_it_is_covered():
    bnn = regression()[0]

    def model(x, y=None):
        mean = bnn(x).squeeze(-1)
        with numpyro.plate("groups", N):
            shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mean + shift, 1.0), obs=y)

    for labels in (None, Y):  # without them the shift is what a label depends on
        guide = guides.AutoMeanField(model)
        assert set(handlers.seed(guide, 0)(X, labels)) == {"net.weight", "shift"}
    svi = SVI(model, guide, optax.adam(0.01), vd.TraceVD_ELBO())
    assert jnp.isfinite(svi.update(svi.init(KEY, X, Y), X, Y)[1])


def test_where_opens_no_plate_of_a_site_that_it_does_not_cover():
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        with numpyro.plate("groups", N):
            shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(x @ w + shift, 1.0), obs=y)

    guide = guides.AutoMeanField(model, where="w")
    trace = handlers.trace(handlers.seed(guide, 0)).get_trace(X, Y)
    assert [name for name, site in trace.items() if site["type"] == "plate"] == []
    covering = handlers.trace(handlers.seed(guides.AutoMeanField(model, where=["w", "shift"]), 0)).get_trace(X, Y)
    assert [name for name, site in covering.items() if site["type"] == "plate"] == ["groups"]


@pytest.mark.parametrize("guide", ["by hand", "AutoNormal"])
def test_a_guide_that_covers_what_the_model_observes_is_an_error(guide):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("N", N):
            numpyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)

    def by_hand(x, y=None):
        numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.0), 1.0))
        with numpyro.plate("N", N):
            numpyro.sample("y", dist.Normal(0.0, 1.0))

    made = by_hand if guide == "by hand" else AutoNormal(model)
    if guide != "by hand":
        handlers.seed(made, 0)(X)  # NumPyro's own takes the label for a latent site
    svi = SVI(model, made, optax.adam(0.01), vd.TraceVD_ELBO())
    state = svi.init(KEY, X, Y)
    with pytest.raises(ValueError, match="site 'y': expected a guide of the latent sites.*samples what the model obs"):
        svi.update(state, X, Y)


@pytest.mark.parametrize("library", LIBRARIES[1:])
@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_guide_reads_parameters_as_the_trained_one_does(name, library):
    family = getattr(guides, name)
    bnn, _, trained, svi = regression(library, family, prior=prior_of(name))
    params = start(svi)[0]
    _, _, fresh, _ = regression(library, family, prior=prior_of(name))
    assert fresh.weight_sites == trained.weight_sites == (weight_site(library),)
    for site, posterior in trained.posteriors(params).items():
        other = fresh.posteriors(params)[site]
        assert type(other) is type(posterior)
        assert jnp.array_equal(other.mean, posterior.mean) and jnp.array_equal(other.variance, posterior.variance)
        assert jnp.array_equal(fresh.log_alpha(params, site), trained.log_alpha(params, site))
    assert str(vd.sparsity_report(fresh, params=params)) == str(vd.sparsity_report(trained, params=params))
    assert same(fresh.median(params), trained.median(params)) and same(fresh.project(params), trained.project(params))
    assert same(fresh.sample_posterior(KEY, params), trained.sample_posterior(KEY, params))
    assert vd.prune(bnn, fresh, params=params) is not None
