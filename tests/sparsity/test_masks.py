"""Masks by threshold and by share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyro_vd as vd

VALUES = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])


def normal(log_alpha, loc=None):
    return vd.DropoutNormal(torch.ones_like(log_alpha) if loc is None else loc, log_alpha)


def two_layers():
    """log_alpha -2 .. 7 in the first layer, 10 more in the second: 20 different values."""
    return {"net.a": normal(VALUES.reshape(2, 5)), "net.b": normal(VALUES + 10.5)}


@pytest.mark.parametrize(
    ("share", "kept"), [(0.0, (10, 10)), (0.25, (10, 5)), (0.5, (10, 0)), (0.9, (2, 0)), (1.0, (0, 0))]
)
def test_a_share_is_taken_over_all_layers_together(share, kept):
    masks = vd.keep_masks(two_layers(), sparsity=share)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {"net.a": (2, 5), "net.b": (10,)}
    assert tuple(int(mask.sum()) for mask in masks.values()) == kept
    assert all(mask.dtype == torch.bool for mask in masks.values())
    flat = masks["net.a"].flatten()
    assert flat[: kept[0]].all() and not flat[kept[0] :].any(), "the largest log_alpha go first"
    report = vd.sparsity_report(two_layers(), sparsity=share)
    assert report.sparsity == pytest.approx(share) and tuple(row.kept for row in report.rows) == kept
    assert torch.equal(vd.keep_masks(two_layers())["net.a"], VALUES.reshape(2, 5) <= 3)


def test_a_share_for_each_layer():
    masks = vd.keep_masks(two_layers(), sparsity={"*": 0.9})
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1]
    masks = vd.keep_masks(two_layers(), sparsity={"net.b": 0.2, "net.*": 0.7})
    assert [int(mask.sum()) for mask in masks.values()] == [3, 8]
    report = vd.sparsity_report(two_layers(), sparsity={"net.b": 0.2, "net.*": 0.7})
    assert report.log_alpha_threshold == {"net.a": 0.0, "net.b": 15.5}


def test_weights_with_one_log_alpha_go_together_and_a_miss_is_said():
    unit = vd.DropoutNormal(torch.ones(3, 4), torch.tensor([[0.0], [1.0], [2.0]]))
    masks = vd.keep_masks({"w": unit}, sparsity=2 / 3)
    assert masks["w"].sum(1).tolist() == [4, 0, 0]
    with pytest.warns(UserWarning, match="sparsity=0.6 of all sites: 0.333 is reached"):
        masks = vd.keep_masks({"w": unit}, sparsity=0.6)
    assert masks["w"].sum(1).tolist() == [4, 4, 0]


def test_shares_in_half_precision():
    """The threshold is the log_alpha of a weight, which stays."""
    log_alpha = torch.arange(64).reshape(8, 8).to(torch.bfloat16) / 8
    for share in (0.25, 0.5, 0.75):
        mask = vd.keep_masks({"w": normal(log_alpha)}, sparsity=share)["w"]
        assert torch.equal(mask.flatten(), torch.arange(64) < 64 * (1 - share))


BAD = [
    (dict(log_alpha_threshold=math.nan), ValueError, "log_alpha_threshold: expected a number, got nan"),
    (dict(log_alpha_threshold="3"), TypeError, "log_alpha_threshold: expected a number, got '3'"),
    (dict(log_alpha_threshold=True), TypeError, "log_alpha_threshold: expected a number, got True"),
    (dict(log_alpha_threshold=None), TypeError, "log_alpha_threshold: expected a number, got 'NoneType'"),
    (dict(sparsity=math.nan), ValueError, "sparsity: expected a number, got nan"),
    (dict(sparsity=math.inf), ValueError, "sparsity: expected a share in 0..1, got inf"),
    (dict(sparsity=1.01), ValueError, "sparsity: expected a share in 0..1, got 1.01"),
    (dict(sparsity=-0.1), ValueError, "sparsity: expected a share in 0..1, got -0.1"),
    (dict(sparsity=90), ValueError, "sparsity: expected a share in 0..1, got 90"),
    (dict(sparsity="0.9"), TypeError, "sparsity: expected a number"),
    (dict(sparsity={"*": 2}), ValueError, r"sparsity\['\*'\]: expected a share in 0..1, got 2"),
    (dict(sparsity={"net.c": 0.5, "*": 0.1}), ValueError, "expected sites or patterns of .*'net.b'.*, got 'net.c'"),
    (dict(sparsity={"net.a": 0.5}), ValueError, "expected a share for every site .*, got none for 'net.b'"),
    (dict(log_alpha_threshold=2.0, sparsity=0.5), ValueError, "expected a threshold or a share, got log_alpha_thr"),
]


@pytest.mark.parametrize(("arguments", "kind", "text"), BAD)
@pytest.mark.parametrize("function", [vd.keep_masks, vd.sparsity_report, "prune"])
def test_bad_thresholds_and_shares(function, arguments, kind, text):
    posteriors = two_layers()
    if function == "prune":
        net = nn.ParameterDict({"a": nn.Parameter(torch.ones(2, 5)), "b": nn.Parameter(torch.ones(10))})
        bnn = vd.BayesianModule(net, vd.ImproperLogUniform(), where="*")
        function = lambda guide, **given: vd.prune(bnn, guide, **given)  # noqa: E731
    with pytest.raises(kind, match=text):
        function(posteriors, **arguments)


@pytest.mark.parametrize(
    "arguments", [{}, {"log_alpha_threshold": math.inf}, {"sparsity": 0.5}, {"sparsity": {"*": 0.5}}]
)
def test_nan_is_an_error_that_names_the_site(arguments):
    log_alpha = VALUES.clone()
    log_alpha[[3, 5]] = math.nan
    posteriors = {"net.a": normal(VALUES), "net.b": normal(log_alpha)}
    for function in (vd.keep_masks, vd.sparsity_report):
        with pytest.raises(ValueError, match="site 'net.b': expected a log_alpha for every weight, got 2 NaN of 10"):
            function(posteriors, **arguments)


def test_posteriors_of_another_net():
    net, bnn = nn.Linear(3, 4), None
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
    before = net.weight.detach().clone()
    for shape in ((1, 3), (3, 4), (4, 3, 1), (3,)):
        with pytest.raises(ValueError, match=r"site 'net.weight': expected a posterior of shape \(4, 3\), got"):
            vd.prune(bnn, {"net.weight": normal(torch.zeros(shape))})
    with pytest.raises(ValueError, match="expected a guide with a weight at site 'net.weight'"):
        vd.prune(bnn, {"other.weight": normal(torch.zeros(4, 3))})
    with pytest.raises(ValueError, match="site 'net.weight': expected finite means, got 1 of 12"):
        loc = torch.ones(4, 3)
        loc[1, 1] = math.inf
        vd.prune(bnn, {"net.weight": normal(torch.zeros(4, 3), loc)})
    assert torch.equal(net.weight, before)
