"""guide.quantiles: by the closed form of each site, element by element."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy.stats import norm

import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY
from pyro_vd.guides import numpyro as guides

pytestmark = pytest.mark.slow  # runs many programs

Q = [0.05, 0.5, 0.9]
FAMILIES = {
    "AutoSparseVD": {},
    "AutoVariationalDropout": {"correlated": True},
    "AutoLowRank": {},
    "AutoGroupSparse": None,
    "AutoBernoulliDropout": None,
    "AutoConcreteDropout": None,
}


def guide_of(family, **options):
    def model():
        numpyro.sample("w", vd.ImproperLogUniform().expand([2, 3]).to_event(2))
        numpyro.sample("rising", dist.HalfNormal(1.0).expand([2]).to_event(1))
        numpyro.sample("falling", dist.TruncatedNormal(0.0, 1.0, high=1.0))

    return getattr(guides, family)(model, **options)


def params_of(guide):
    with handlers.trace() as trace:
        handlers.seed(guide, KEY)()
    params = {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    return {name: value + (-0.3 if "log" in name else 0.2) for name, value in params.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_quantiles_are_those_of_the_distribution_of_each_element(family):
    guide = guide_of(family, **(FAMILIES[family] or {}))
    params = params_of(guide)
    if FAMILIES[family] is None:
        with pytest.raises(ValueError, match="site 'w': expected .*Gaussian.*got .*; write .*sample_posterior"):
            guide.quantiles(params, Q)
        return
    found = guide.quantiles(params, Q)
    q = guide.posteriors(params)["w"]
    z = norm.ppf(Q)
    np.testing.assert_allclose(found["w"], q.mean + z[:, None, None] * jnp.sqrt(q.variance), rtol=1e-5, atol=1e-6)
    loc, scale = params["rising_auto_loc"], params["rising_auto_scale"]
    np.testing.assert_allclose(found["rising"], jnp.exp(loc + z[:, None] * scale), rtol=1e-5)
    loc, scale = params["falling_auto_loc"], params["falling_auto_scale"]
    np.testing.assert_allclose(found["falling"], 1.0 - jnp.exp(loc - z * scale), rtol=1e-5)
    for site, median in guide.median(params).items():
        np.testing.assert_allclose(found[site][1], median, rtol=1e-6)
    for site, one in guide.quantiles(params, 0.9).items():
        np.testing.assert_allclose(one, found[site][2:], rtol=1e-6)


@pytest.mark.parametrize("quantiles", [0.0, 1.0, [0.5, 1.5], "0.5", [], None, jnp.ones((2, 2)), [[0.5]], float("nan")])
def test_what_is_no_probability_is_named(quantiles):
    with pytest.raises(ValueError, match="quantiles: expected one number or several between 0 and 1, got .*; write"):
        guides.AutoSparseVD(lambda: None).quantiles({}, quantiles)


def test_elements_that_are_mapped_together_and_a_mixed_guide():
    def model():
        numpyro.sample("w", vd.ImproperLogUniform().expand([2, 3]).to_event(2))
        numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))

    guide = guides.AutoSparseVD(model)
    params = params_of(guide)
    with pytest.raises(ValueError, match="site 'shares': expected .* one by one .*StickBreaking.*sample_posterior"):
        guide.quantiles(params, Q)
    part = guides.AutoSparseVD(model, where="w")
    mixed = guides.mixed_guide(model, part)
    params = params_of(mixed)
    np.testing.assert_array_equal(mixed.quantiles(params, Q)["w"], part.quantiles(params, Q)["w"])
