"""Names in where= that match nothing, and weights that are drawn once though the estimator asks for more."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField, AutoSparseVD

pytestmark = pytest.mark.slow  # compiles many programs

KEY, X, Y = jax.random.key(0), jnp.ones((4, 3)), jnp.zeros((4, 2))


def model(x, y=None):
    weight = numpyro.sample("weight", dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(2))
    with vd.data_plate(4, len(x)):
        return numpyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("where", [["weight", "wieght"], ("w*", "y"), ["weight", "x*"]])
def test_a_pattern_that_matches_nothing_among_several(where):
    guide = AutoMeanField(model, where=where)
    with pytest.raises(ValueError, match=rf"the sites \['weight'\]; .* of which \['{where[1][0]}.*match none"):
        numpyro.handlers.seed(guide, 0)(X, Y)
    known = AutoMeanField(model, where=["weight", "w*"])
    assert list(numpyro.handlers.seed(known, 0)(X, Y)) == ["weight"]
    with pytest.raises(ValueError, match="got \\['wieght'\\]"):
        known.set_learnable("locs", False, where=["weight", "wieght"])


GUIDES = {
    "Normal": lambda loc: dist.Normal(loc, 1.0).to_event(2),
    "MultivariateNormal": lambda loc: dist.MultivariateNormal(loc, jnp.eye(2)).to_event(1),
    "DropoutNormal": lambda loc: vd.DropoutNormal(loc, log_sigma2=0.0).to_event(2),
}


@pytest.mark.parametrize("estimator", ["local", "flipout", "shared"])
@pytest.mark.parametrize("name", GUIDES)
def test_a_weight_that_is_drawn_once_is_named_once(name, estimator):
    def guide(x, y=None):
        numpyro.sample("weight", GUIDES[name](jnp.zeros((3, 2))))

    for shared_sites in ((), ["weight"]):
        elbo = vd.TraceVD_ELBO(estimator, analytic_only=False, shared_sites=shared_sites)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                elbo.loss(KEY, {}, model, guide, X, Y)
        expected = name != "DropoutNormal" and estimator != "shared" and not shared_sites
        said = [str(one.message) for one in caught if "drawn once a step" in str(one.message)]
        assert len(said) == expected and all("'weight'" in one and name in one for one in said)


def noisy(x, y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    weight = numpyro.sample("weight", vd.ImproperLogUniform().expand([3, 2]).to_event(2))
    with vd.data_plate(4, len(x)):
        return numpyro.sample("y", dist.Normal(x @ weight, scale).to_event(1), obs=y)


def test_parameters_that_are_not_finite_or_of_another_shape():
    guide = AutoSparseVD(noisy)
    svi = numpyro.infer.SVI(noisy, guide, numpyro.optim.Adam(0.01), vd.TraceVD_ELBO())
    params = svi.get_params(svi.init(KEY, X, Y))
    calls = {
        "posterior_predictive": lambda given: vd.posterior_predictive(KEY, given, noisy, guide, X, num_samples=1),
        "predictive_distribution": lambda given: vd.predictive_distribution(KEY, given, noisy, guide, X, num_samples=1),
        "posteriors": guide.posteriors,
        "median": guide.median,
        "sample_posterior": lambda given: guide.sample_posterior(KEY, given),
    }
    assert len(params) == 4
    for name, value in params.items():
        flat = jnp.ravel(value)
        for bad in (jnp.nan, jnp.inf):
            wrong = flat.at[0].set(bad).reshape(value.shape)
            for call in calls.values():
                with pytest.raises(ValueError, match=f"{name}.*1 NaN or infinite"):
                    call({**params, name: wrong})
        for label, call in calls.items():
            if label == "posteriors" and name.startswith("scale"):  # which has no use for it
                continue
            with pytest.raises(ValueError, match=f"{name}.*expected a value of shape"):
                call({**params, name: jnp.ones((5, 1, 2))})
    for label, call in calls.items():
        call(params)
        if label not in ("predictive_distribution", "posteriors"):  # which return no arrays
            jax.jit(call)(params)
