"""What a guide, a report and a choice of parameters say where they cannot do what was asked."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD


@pytest.mark.parametrize("where", [(nn.Linear, nn.Conv2d), [nn.GRU, nn.Linear]])
def test_a_type_that_matches_nothing_beside_one_that_does(where):
    lost = next(kind.__name__ for kind in where if kind is not nn.Linear)
    with pytest.raises(ValueError, match=rf"where: expected types of modules.*got \['{lost}'\].*leave them out"):
        vd.BayesianModule(nn.Linear(3, 2), vd.ImproperLogUniform(), where=where)


@pytest.mark.parametrize("family", [AutoSparseVD, AutoMeanField])
def test_a_net_made_in_inference_mode_has_no_guide(family):
    with torch.inference_mode():
        bnn = vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"'net.weight'.*made within torch.inference_mode\(\); make the net outside"):
        family(bnn)


def test_the_report_has_a_vector_that_is_drawn_once():
    def model(x):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        return nn.functional.linear(x, weight) + (x @ slope)[:, None]

    def guide(x):
        pyro.sample("slope", dist.Normal(torch.zeros(3), 0.1).to_event(1))
        pyro.sample("weight", vd.DropoutNormal(torch.zeros(2, 3), log_sigma2=-2.0).to_event(2))

    report = vd.lrt_report(model, guide, torch.ones(4, 3))
    assert [(row.site, row.how) for row in report.rows] == [("slope", "one draw"), ("weight", "local")]


def test_no_net_is_within_a_tolerance_of_an_infinite_error():
    bnn = vd.BayesianModule(nn.Linear(3, 2), vd.ImproperLogUniform())
    curve = vd.threshold_curve(bnn, AutoSparseVD(bnn), lambda net: math.inf, [1.0])
    with pytest.raises(ValueError, match="choose: expected an unpruned net with a finite error, got inf"):
        curve.choose(0.1)
