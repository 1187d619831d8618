"""A latent site whose bounds move with another site or a parameter: no guide that maps to fixed bounds covers it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

PRIORS = {
    "Uniform": lambda tau: dist.Uniform(0.0, tau),
    "Pareto": lambda tau: dist.Pareto(tau, 2.0),
    "a vector": lambda tau: dist.Uniform(0.0, tau).expand([3]).to_event(1),
}


def guide_of(prior, of="site"):
    pyro.clear_param_store()

    def model():
        w = pyro.sample("w", vd.ImproperLogUniform())
        tau = pyro.sample("tau", dist.HalfNormal(1.0)) if of == "site" else pyro.param("tau", torch.tensor(1.0))
        theta = pyro.sample("theta", prior(tau))
        pyro.sample("y", dist.Normal(w, 1 + theta.square().sum()), obs=torch.tensor(0.0))

    return AutoSparseVD(model)


@pytest.mark.parametrize("of", ["site", "parameter"])
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_bounds_that_move_are_refused(prior, of):
    with pytest.raises(ValueError, match="site 'theta': expected .* support is always the same, got .* bounds .*_unit"):
        guide_of(prior, of)()


@pytest.mark.parametrize("of", ["site", "parameter"])
def test_bounds_that_stay_are_covered_whatever_the_scale_depends_on(of):
    for prior in (
        lambda tau: dist.HalfNormal(tau),
        lambda tau: dist.Normal(0.0, tau),
        lambda tau: dist.Uniform(0.0, 2.0),
    ):
        assert "theta" in guide_of(prior, of)()
