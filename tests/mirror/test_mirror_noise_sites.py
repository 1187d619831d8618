"""Latent sites beside the weights, on any support: covered by default, with the right term in the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

import pyro_vd.numpyro as vd
from helpers.guide_cases import NAMES
from helpers.mirror_parity import NORMAL_PRIOR
from helpers.mirror_regression import KEY, X, Y, regression
from pyro_vd.guides import numpyro as guides

pytestmark = pytest.mark.slow  # compiles many programs

PRIORS = {
    "HalfNormal": dist.HalfNormal(1.0),
    "Gamma": dist.Gamma(2.0, 2.0),
    "LogNormal": dist.LogNormal(0.0, 1.0),
    "Exponential": dist.Exponential(1.0),
    "HalfCauchy": dist.HalfCauchy(1.0),
    "Uniform": dist.Uniform(0.1, 2.0),
    "Beta": dist.Beta(2.0, 2.0),
    "Cauchy": dist.Cauchy(0.0, 1.0),
    "Normal": dist.Normal(0.0, 1.0),
    "Dirichlet": dist.Dirichlet(jnp.ones(3)),
    "LKJCholesky": dist.LKJCholesky(3, 1.0),
    "a vector": dist.HalfNormal(1.0).expand([4]).to_event(1),
    "bounds that are arrays": dist.Uniform(jnp.array([0.1, 0.2]), 2.0).to_event(1),
}


def program(prior, plate=None):
    """A regression whose noise scale is made of the site, so that it matters."""
    bnn = regression()[0]

    def model(x, y=None):
        if plate:
            with numpyro.plate("groups", plate):
                site = numpyro.sample("site", prior)
        else:
            site = numpyro.sample("site", prior)
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(40, len(x)):
            numpyro.sample("y", dist.Normal(mean, 0.5 + jnp.abs(site).mean()), obs=y)

    guide = guides.AutoMeanField(model)
    return model, guide, SVI(model, guide, optax.adam(0.02), vd.TraceVD_ELBO())


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "Normal"])  # whose KL has a closed form
def test_a_site_is_covered_and_its_term_is_log_q_minus_log_p_at_the_draw(name):
    model, guide, svi = program(PRIORS[name])
    state = svi.init(KEY, X, Y)
    params = svi.get_params(state)
    terms = svi.loss.terms(KEY, params, model, guide, X, Y)
    guide_key = jax.random.split(KEY)[1]
    draw = handlers.seed(handlers.substitute(vd.lrt(guide), params), guide_key)(X, Y)["site"]
    fn = PRIORS[name]
    transform = biject_to(fn.support)
    loc, scale = params["site_auto_loc"], params["site_auto_scale"]
    latent = transform.inv(draw)
    # The density of the draw: of the Gaussian on the real line, over the volume that the map makes of it.
    log_q = dist.Normal(loc, scale).log_prob(latent).sum() - transform.log_abs_det_jacobian(latent, draw).sum()
    np.testing.assert_allclose(terms.kl["site"], log_q - fn.log_prob(draw).sum(), rtol=2e-3, atol=2e-3)
    assert jnp.shape(draw) == fn.shape()
    predicted = vd.posterior_predictive(KEY, params, model, guide, X, num_samples=2, return_sites=["site", "y"])
    assert predicted["site"].shape == (2, *fn.shape()) and bool(fn.support(predicted["site"]).all())


@pytest.mark.parametrize("name", ["HalfNormal", "Dirichlet", "a vector"])
def test_it_trains_under_jit_and_scan(name):
    _, guide, svi = program(PRIORS[name])
    state = jax.jit(svi.init)(KEY, X, Y)
    state, losses = jax.lax.scan(lambda s, _: svi.update(s, X, Y), state, None, length=200)
    assert jnp.isfinite(losses).all() and losses[-20:].mean() < losses[:20].mean()
    svi.init(KEY, X, Y)
    assert set(guide.median(svi.get_params(state))) == {"net.weight", "site"}


def test_the_estimate_has_the_mean_of_the_kl_in_closed_form():
    """A Normal site beside the weights has a rule, which is used; a LogNormal one has the KL of its logarithm."""
    model, guide, svi = program(PRIORS["LogNormal"])
    params = svi.get_params(svi.init(KEY, X, Y))
    loc, scale = params["site_auto_loc"], params["site_auto_scale"]
    exact = kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0))
    terms = jax.vmap(lambda key: svi.loss.terms(key, params, model, guide, X, Y).kl["site"])
    draws = terms(jax.random.split(KEY, 1000))
    assert draws.std() > 0 and abs(draws.mean() - exact) < 6 * draws.std() / np.sqrt(1000)  # one failure in 5e8
    model, guide, svi = program(PRIORS["Normal"])
    params = svi.get_params(svi.init(KEY, X, Y))
    loc, scale = params["site_auto_loc"], params["site_auto_scale"]
    exact = kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0))
    for key in jax.random.split(KEY, 3):
        np.testing.assert_allclose(svi.loss.terms(key, params, model, guide, X, Y).kl["site"], exact, rtol=1e-5)


@pytest.mark.parametrize("name", ["HalfNormal", "Cauchy", "Dirichlet", "a vector"])
def test_it_is_what_the_autonormal_of_numpyro_does(name):
    """The same names, starts and distribution from the same parameters."""
    start = numpyro.infer.init_to_value(values={"site": PRIORS[name].sample(KEY)})

    def site_of(make):
        def model(x, y=None):
            site = numpyro.sample("site", PRIORS[name])
            w = numpyro.sample("w", vd.ImproperLogUniform()) if make is guides.AutoSparseVD else 0.0
            numpyro.sample("y", dist.Normal(w + jnp.abs(site).mean(), 1.0), obs=y)

        guide = make(model, init_loc_fn=start)
        svi = SVI(model, guide, optax.adam(0.1), vd.TraceVD_ELBO())
        return svi.get_params(svi.init(KEY, X, jnp.zeros(())))

    ours, stock = site_of(guides.AutoSparseVD), site_of(AutoNormal)
    assert set(stock) == {"site_auto_loc", "site_auto_scale"}
    for parameter in stock:
        np.testing.assert_allclose(ours[parameter], stock[parameter], rtol=1e-5, atol=1e-6)


def test_the_mean_network_has_the_median_of_such_a_site():
    for name in ("HalfNormal", "Uniform", "Dirichlet", "Normal"):
        model, guide, svi = program(PRIORS[name])
        params = svi.get_params(svi.init(KEY, X, Y))
        options = {"num_samples": 1, "mode": "mean", "return_sites": "site"}
        mean = vd.posterior_predictive(KEY, params, model, guide, X, **options)["site"][0]
        np.testing.assert_allclose(mean, guide.median(params)["site"], rtol=1e-6)


def test_sites_in_plates():
    model, guide, svi = program(dist.HalfNormal(1.0), plate=3)
    state = svi.init(KEY, X, Y)
    params = svi.get_params(state)
    assert params["site_auto_loc"].shape == (3,) and guide.median(params)["site"].shape == (3,)
    assert guide.sample_posterior(KEY, params, sample_shape=(2,))["site"].shape == (2, 3)
    assert jnp.isfinite(jax.jit(svi.update)(state, X, Y)[1])


@pytest.mark.parametrize("name", NAMES)
def test_every_family_covers_a_noise_site(name):
    prior = dist.Normal(0.0, 1.0) if name in NORMAL_PRIOR else vd.ImproperLogUniform()
    *_, svi = regression(guide=getattr(guides, name), prior=prior, noise=dist.HalfNormal(1.0))
    state = svi.init(KEY, X, Y)
    assert "scale_auto_loc" in svi.get_params(state) and jnp.isfinite(jax.jit(svi.update)(state, X, Y)[1])


def test_a_part_of_numpyro_in_a_mixed_guide():
    bnn, model, _, _ = regression(noise=dist.HalfNormal(1.0))
    noise = AutoNormal(handlers.block(handlers.seed(model, 0), hide_fn=lambda site: site["name"] != "scale"))
    mixed = guides.mixed_guide(model, noise, guides.AutoMeanField(model, where="net.*"))
    svi = SVI(model, mixed, optax.adam(0.02), vd.TraceVD_ELBO())
    state = svi.init(KEY, X, Y)
    assert set(svi.loss.terms(KEY, svi.get_params(state), model, mixed, X, Y).kl) == {"net.weight", "scale"}


def test_what_no_map_from_the_real_line_reaches_is_an_error():
    for prior, match in (
        (dist.Bernoulli(0.5), "site 'site': expected a continuous latent site for AutoMeanField, got Bernoulli"),
        (dist.Poisson(3.0), "site 'site': expected a continuous latent site for AutoMeanField, got Poisson"),
    ):
        *_, svi = program(prior)
        with pytest.raises(ValueError, match=match):
            svi.init(KEY, X, Y)


def test_a_weight_without_a_rule_is_still_an_error():
    *_, svi = regression(prior=dist.Laplace(0.0, 1.0), noise=dist.HalfNormal(1.0))
    state = svi.init(KEY, X, Y)
    with pytest.raises(ValueError, match="site 'net.weight': expected a pair of distributions with a KL rule"):
        svi.update(state, X, Y)
