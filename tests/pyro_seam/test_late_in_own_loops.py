"""A loop of one's own, with an optimizer from before a guide knew its noise site, is warned of under every ELBO."""

from __future__ import annotations

import copy
import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import without_compiler
from pyro_vd.guides import AutoMeanField, mixed_guide

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 2)


def program():
    bnn = vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean, noise = bnn(x), pyro.sample("noise", dist.Gamma(2.0, 2.0))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)

    return model


def mixed(model):
    return mixed_guide(model, AutoMeanField(model, where="net.*"), AutoNormal(poutine.block(model, expose=["noise"])))


LOSSES = {
    "ours": lambda model, guide: vd.TraceVD_ELBO().differentiable_loss(model, guide, X, Y),
    "terms": lambda model, guide: vd.TraceVD_ELBO().terms(model, guide, X, Y).loss,
    "checked": lambda model, guide: vd.TraceVD_ELBO().checked_terms(model, guide, X, Y).loss,
    "sampled": lambda model, guide: Trace_ELBO().differentiable_loss(model, guide, X, Y),
    "lrt": lambda model, guide: TraceMeanField_ELBO().differentiable_loss(model, vd.lrt(guide), X, Y),
}


@pytest.mark.parametrize("family", [AutoMeanField, mixed])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_that_leaves_the_noise_alone_is_warned_of_once(loss, family):
    model = program()
    guide = family(model)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    LOSSES[loss](model, guide).backward()
    copy.deepcopy(guide)
    optimizer.step()
    with pytest.warns(UserWarning, match=r"a step that moved others and not \['.*locs.noise.*', '.*scales.noise"):
        LOSSES[loss](model, guide)
    LOSSES[loss](model, guide)  # a second warning would be an error here


@pytest.mark.parametrize("family", [AutoMeanField, mixed])
def test_no_warning_where_the_noise_is_trained(family, monkeypatch):
    warnings.simplefilter("error")
    model = program()
    svi = SVI(model, family(model), pyro.optim.Adam({"lr": 0.1}), vd.TraceVD_ELBO())
    for _ in range(3):
        svi.step(X, Y)
    pyro.clear_param_store()
    guide = family(model)
    guide(X, Y)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    for _ in range(3):
        LOSSES["ours"](model, guide).backward()
        optimizer.step()


@pytest.mark.slow
def test_a_compiled_step_is_compiled_once_all_the_same(monkeypatch):
    without_compiler(monkeypatch)
    model = program()
    svi = vd.CompiledSVI(
        model, AutoMeanField(model), functools.partial(torch.optim.Adam, lr=0.1), vd.TraceVD_ELBO(), strict=True
    )
    for _ in range(5):
        svi.step(X, Y)
    assert len(svi._programs) == 1
