"""The priors that a choice of weights gets, and the report of a module. Exact."""

from __future__ import annotations

import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vd as vd
from helpers.plain_nets import ByRange, TransposedLinear

PRIOR = dist.Normal(0.0, 1.0)


def scales(bnn: vd.BayesianModule) -> list[float]:
    return [float(prior.scale) for prior in bnn.priors.values()]


def test_a_prior_is_found_by_type_name_and_function():
    net = nn.Sequential(TransposedLinear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    by_type = {"2.*": dist.Normal(0.0, 3.0), nn.Linear: dist.Normal(0.0, 2.0), nn.Module: dist.Normal(0.0, 1.0)}
    assert scales(vd.BayesianModule(net, by_type)) == [1.0, 2.0, 3.0]

    def of_three(name: str, parameter: Tensor, module: nn.Module) -> dist.Normal:
        return dist.Normal(0.0, 5.0 if isinstance(module, TransposedLinear) else float(parameter.shape[0]))

    def named(name: str, parameter: Tensor, module: nn.Module | None = None) -> dist.Normal:
        return of_three(name, parameter, module)

    for prior in (of_three, named):
        assert scales(vd.BayesianModule(net, prior)) == [5.0, 4.0, 2.0]
    functions = [lambda name, parameter, scale=scale: dist.Normal(0.0, scale) for scale in (1.0, 2.0)]
    assert [scales(vd.BayesianModule(net, one))[0] for one in functions] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        ({"*": PRIOR, "9.*": PRIOR, nn.Conv2d: PRIOR}, ValueError, r"got \['9.\*', 'Conv2d'\], which match none"),
        ({nn.Conv2d: PRIOR}, ValueError, r"expected a prior for parameter 'weight', got priors for \['Conv2d'\] only"),
        ({0: PRIOR}, TypeError, "expected names or patterns of parameters, or types of layers, for keys, got 0"),
        ({"*": 1.0}, TypeError, "expected a Pyro distribution for parameter 'weight', got float; write pyro."),
        (dist.Normal, TypeError, "expected a Pyro distribution, a mapping of names to them or a function"),
        (dist.Normal(torch.zeros(7), 1.0), ValueError, r"expands to the shape \(2, 4\) of parameter 'weight'"),
        (PRIOR.expand([4]).to_event(1), ValueError, r"events of shape \(4,\); leave out to_event"),
    ],
)  # fmt: skip
def test_a_prior_that_fits_nothing_is_an_error(prior, error, message):
    with pytest.raises(error, match=message):
        vd.BayesianModule(nn.Linear(4, 2), prior)


def test_the_report_says_what_every_parameter_is_and_why():
    net = nn.Sequential(ByRange(), TransposedLinear(2, 2))
    net[0].out.weight.requires_grad_(False)
    bnn = vd.BayesianModule(net, {nn.Embedding: PRIOR, "*": vd.ImproperLogUniform()}, name="bnn")
    report = bnn.report()
    rows = {row.name: (row.layer, row.kind, row.why, row.prior) for row in report.rows}
    assert rows == {
        "0.words.weight": ("Embedding", "random", "weight of Embedding", "Normal(loc: 0.0, scale: 1.0)"),
        "0.places.weight": ("Embedding", "deterministic", "an embedding of positions", ""),
        "0.out.weight": ("Linear", "frozen", "frozen: requires_grad=False", ""),
        "0.out.bias": ("Linear", "deterministic", "a bias or a gain", ""),
        "1.weight": ("TransposedLinear", "random", "weight in addmm", str(vd.ImproperLogUniform())),
        "1.bias": ("TransposedLinear", "deterministic", "a bias or a gain", ""),
    }
    assert report.share == (36 + 4) / (36 + 4 + 32) and [row.name for row in report.of_kind("frozen")] == [
        "0.out.weight"
    ]
    assert all(any(row.name in line and row.why in line for line in str(report).splitlines()) for row in report.rows)
    assert report.summary in repr(bnn) and len(repr(bnn).splitlines()) == len(repr(net).splitlines()) + 3
    assert pickle.loads(pickle.dumps(report)) == report
    net[1].weight.requires_grad_(False)
    by_name = vd.BayesianModule(net, PRIOR, where=("0.words.weight", "1.weight"))
    assert [row.why for row in by_name.report().of_kind("random")] == ["where='0.words.weight'", "where='1.weight'"]


def test_the_report_counts_what_a_layer_keeps_fixed():
    net = nn.Sequential(
        nn.Embedding(5, 3, padding_idx=0), torch.nn.utils.prune.l1_unstructured(nn.Linear(3, 2), "weight", 4)
    )
    rows = {row.name: row.fixed for row in vd.BayesianModule(net, PRIOR).report().rows}
    assert rows == {"0.weight": 3, "1.bias": 0, "1.weight_orig": 4}
