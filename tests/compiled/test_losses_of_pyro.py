"""Losses of Pyro that have nothing to train: the value of SVI, or an error that says so."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

import pyro_vd as vd


def without_sites():
    return None


@pytest.mark.filterwarnings("ignore:expected a step that can be compiled.*no parameter to train")
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, vd.TraceVD_ELBO])
def test_a_model_without_sites_has_the_loss_of_svi(elbo):
    found = []
    for kind in (vd.CompiledSVI, SVI):
        svi = kind(without_sites, without_sites, pyro.optim.Adam({"lr": 0.1}), elbo())
        found.append(float(svi.step()))
    assert found[0] == found[1] == 0.0


@pytest.mark.filterwarnings("ignore:.*no sample sites configured")
def test_a_loss_that_depends_on_no_parameter_says_so():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(()))

    svi = vd.CompiledSVI(model, without_sites, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO())
    with pytest.raises(ValueError, match="something to train, got a loss of TraceEnum_ELBO.*pyro.infer.SVI"):
        svi.step()
