"""A latent site whose bounds move with another site or a parameter: no guide that maps to fixed bounds covers it."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY
from pyro_vd.guides.numpyro import AutoSparseVD

pytestmark = pytest.mark.slow  # runs many programs

PRIORS = {
    "Uniform": lambda tau: dist.Uniform(0.0, tau),
    "Pareto": lambda tau: dist.Pareto(tau, 2.0),
    "truncated": lambda tau: dist.TruncatedNormal(0.0, 1.0, low=tau),
    "a vector": lambda tau: dist.Uniform(0.0, tau).expand([3]).to_event(1),
}


def guide_of(prior, of="site"):
    def model():
        w = numpyro.sample("w", vd.ImproperLogUniform())
        tau = numpyro.sample("tau", dist.HalfNormal(1.0)) if of == "site" else numpyro.param("tau", 1.0)
        theta = numpyro.sample("theta", prior(tau))
        numpyro.sample("y", dist.Normal(w, 1 + (theta**2).sum()), obs=0.0)

    return handlers.seed(AutoSparseVD(model), KEY)


@pytest.mark.parametrize("of", ["site", "parameter"])
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_bounds_that_move_are_refused_with_what_they_depend_on(prior, of):
    with pytest.raises(
        ValueError, match="site 'theta': expected .* support is always the same, got .* on 'tau', .*_unit"
    ):
        guide_of(prior, of)()


@pytest.mark.parametrize("of", ["site", "parameter"])
def test_bounds_that_stay_are_covered_whatever_the_scale_depends_on(of):
    for prior in (
        lambda tau: dist.HalfNormal(tau),
        lambda tau: dist.Normal(0.0, tau),
        lambda tau: dist.Uniform(0.0, 2.0),
        lambda tau: dist.TruncatedNormal(tau, 1.0, low=jnp.array(0.0)),
    ):
        assert "theta" in guide_of(prior, of)()
