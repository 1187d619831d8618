"""Reports and pruning of a mixed guide with a guide of Pyro for a noise scale, and two parts for one site."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD, mixed_guide

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 2)


def program():
    bnn = vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean, noise = bnn(x), pyro.sample("noise", dist.Gamma(2.0, 2.0))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)

    return model, bnn


def of_noise(model, kind=AutoNormal):
    return kind(poutine.block(model, expose=["noise"]))


def plain_list(model):
    guide = AutoGuideList(model)
    guide.append(AutoMeanField(model, where="net.*"))
    guide.append(of_noise(model))
    return guide


MADE = {
    "weights first": lambda m: mixed_guide(m, AutoMeanField(m, where="net.*"), of_noise(m)),
    "noise first": lambda m: mixed_guide(m, of_noise(m), AutoMeanField(m, where="net.*")),
    "a point": lambda m: mixed_guide(m, AutoMeanField(m, where="net.*"), of_noise(m, AutoDelta)),
    "nested": lambda m: mixed_guide(m, mixed_guide(m, AutoMeanField(m, where="net.*")), of_noise(m)),
    "a function": lambda m: mixed_guide(m, AutoMeanField(m, where="net.*"), lambda x, y=None: {}),
    "a plain list": plain_list,
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("called", [False, True])
def test_reports_and_pruning_are_of_the_weights(kind, called):
    model, bnn = program()
    guide = MADE[kind](model)
    if kind != "a plain list":
        assert guide.weight_sites == tuple(guide.posteriors()) == ("net.weight",)
        assert guide.log_alpha("net.weight").shape == (2, 3)
    if called and kind != "a plain list":
        guide(X, Y)
    assert [row.site for row in vd.sparsity_report(guide).rows] == ["net.weight"]
    assert list(vd.keep_masks(guide, sparsity=0.5)) == ["net.weight"] and vd.weight_bits(guide).rows[0].weights == 6
    assert vd.prune(bnn, guide, sparsity=0.5).weight.count_nonzero() == 3
    assert vd.threshold_curve(bnn, guide, lambda net: 0.0, thresholds=[3.0]).rows


TWICE = {
    "the noise": lambda m: mixed_guide(m, AutoMeanField(m), of_noise(m)),
    "the noise, by guides of Pyro": lambda m: mixed_guide(
        m, AutoSparseVD(m, where="net.*"), of_noise(m), of_noise(m, AutoDelta)
    ),
    "a weight": lambda m: mixed_guide(m, AutoMeanField(m, where="net.*"), AutoNormal(m)),
    "nested": lambda m: mixed_guide(m, mixed_guide(m, AutoMeanField(m)), of_noise(m)),
}


@pytest.mark.parametrize("kind", TWICE)
def test_two_parts_for_one_site_are_named(kind):
    model, _ = program()
    sites = r"\['net.weight'\]" if kind == "a weight" else r"\['noise'\]"
    with pytest.raises(ValueError, match=f"mixed_guide: expected one guide for each site, got two or more for {sites}"):
        TWICE[kind](model)(X, Y)


def test_two_parts_for_one_weight_are_named_at_once_within_a_nested_guide_too():
    model, _ = program()
    inner = mixed_guide(model, AutoMeanField(model, where="net.*"))
    with pytest.raises(ValueError, match=r"no two guides on one site, got two on \['net.weight'\]"):
        mixed_guide(model, inner, AutoSparseVD(model, where="net.weight"))
