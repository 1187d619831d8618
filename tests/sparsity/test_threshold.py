"""The curve of error and size against the threshold, and what is chosen from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyro_vd as vd


def program(net=None):
    """A perceptron, and a posterior of its weights with log_alpha 0, 1, 2, ... in random order."""
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
    parameters = dict(net.named_parameters())
    log_alpha = torch.randperm(80).float()
    posteriors = {
        bnn.site(name): vd.DropoutNormal(parameters[name].detach(), part.reshape(parameters[name].shape))
        for name, part in zip(bnn.weight_names, log_alpha.split(40), strict=True)
    }
    return bnn, posteriors


def test_rows_are_the_pruned_nets():
    bnn, guide = program()
    x = torch.randn(20, 5)
    target = vd.prune(bnn, guide, math.inf)(x).detach()
    curve = vd.threshold_curve(bnn, guide, lambda net: (net(x) - target).square().mean(), thresholds=[50, 9.5, -1])
    assert [row.log_alpha_threshold for row in curve.rows] == [-1, 9.5, 50, math.inf]
    assert [row.kept for row in curve.rows] == [0, 10, 51, 80] and {row.weights for row in curve.rows} == {80}
    for row in curve.rows:
        error = (vd.prune(bnn, guide, row.log_alpha_threshold)(x) - target).square().mean().item()
        assert row.error == pytest.approx(error) and row.metrics == {"error": row.error}
        assert row.sparsity == 1 - row.kept / 80
    assert curve.unpruned.error == 0 and curve.rows[0].error > 0


def test_thresholds_by_default_follow_the_posterior():
    bnn, guide = program()
    for shift in (0.0, -200.0):  # log_alpha of Kingma's families is at most 0
        shifted = {site: vd.DropoutNormal(q.loc, q.log_alpha + shift) for site, q in guide.items()}
        rows = vd.threshold_curve(bnn, shifted, lambda net: 1.0).rows
        shares = [row.sparsity for row in rows]
        assert shares == sorted(shares, reverse=True) and shares[-1] == 0 and len({*shares}) >= 15
        assert min(shares[:-1]) <= 0.1 and shares[0] >= 0.98
        assert any(row.log_alpha_threshold == 3.0 for row in rows)


@pytest.mark.parametrize(("tolerance", "chosen"), [(0, 4.0), (0.5, 3.0), (0.99, 3.0), (1.0, 1.0), (100, 0.0)])
def test_the_sparsest_within_a_tolerance(tolerance, chosen):
    """Errors by threshold 0 .. 5 and infinity: 9, 3, 5, 2.5, 2, 7, 2; the error need not fall with the threshold."""
    bnn, guide = program()
    errors = iter([9.0, 3.0, 5.0, 2.5, 2.0, 7.0, 2.0])
    curve = vd.threshold_curve(bnn, guide, lambda net: next(errors), thresholds=range(6))
    assert curve.choose(tolerance).log_alpha_threshold == chosen
    for bad in (-1.0, math.nan, math.inf, "1", True):
        with pytest.raises(ValueError, match="choose: expected a tolerance of 0 or more"):
            curve.choose(bad)


def test_nets_are_evaluated_without_gradients_and_in_eval_mode():
    bnn, guide = program(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 5)))
    seen = []

    def evaluate(net):
        seen.append(net)
        assert not net.training and not torch.is_grad_enabled()
        return {"NLL": 2.0, "error": torch.tensor(1.0)}

    curve = vd.threshold_curve(bnn, guide, evaluate, [3.0])
    assert bnn.net.training and len(seen) == 2
    assert list(curve.rows[0].metrics.items()) == [("error", 1.0), ("NLL", 2.0)]
    lines = str(curve).splitlines()
    assert lines[0].split() == ["threshold", "kept", "sparsity", "error", "NLL"] and lines[-1].split()[0] == "inf"


def test_the_picture():
    import matplotlib

    matplotlib.use("Agg")
    bnn, guide = program()
    curve = vd.threshold_curve(bnn, guide, lambda net: {"error": 1.0, "NLL": 2.0})
    figure = curve.plot()
    assert [axis.get_ylabel() for axis in figure.axes] == ["error", "NLL", "weights kept (%)", "weights kept (%)"]
    drawn = figure.axes[2].get_lines()[0].get_ydata()
    assert len(drawn) == len(curve.rows) - 1 and max(drawn) <= 100
    matplotlib.pyplot.close(figure)


@pytest.mark.parametrize(("returned", "kind", "text"), [
    (math.nan, ValueError, "evaluate: expected an error, lower is better, got NaN at threshold 3"),
    ({"loss": 1.0}, ValueError, r"a mapping with 'error' among its names, got \['loss'\]"),
    (None, TypeError, "evaluate: expected a number, or a mapping to numbers, got None"),
    ({"error": "low"}, TypeError, "evaluate: expected a number, or a mapping to numbers"),
    (torch.ones(2), TypeError, "evaluate: expected a number"),
])  # fmt: skip
def test_bad_evaluations(returned, kind, text):
    bnn, guide = program()
    with pytest.raises(kind, match=text):
        vd.threshold_curve(bnn, guide, lambda net: returned, [3.0])


def test_other_bad_input():
    bnn, guide = program()
    for thresholds in ([], "auto"):
        with pytest.raises(ValueError, match="thresholds: expected numbers, got"):
            vd.threshold_curve(bnn, guide, lambda net: 1.0, thresholds)
    with pytest.raises(ValueError, match="log_alpha_threshold: expected a number, got nan"):
        vd.threshold_curve(bnn, guide, lambda net: 1.0, [1.0, math.nan])
    names = iter([{"error": 1.0}, {"error": 1.0, "NLL": 1.0}])
    with pytest.raises(ValueError, match=r"evaluate: expected \['error'\] for every net, got \['error', 'NLL'\]"):
        vd.threshold_curve(bnn, guide, lambda net: next(names), [1.0])
    guide["net.0.weight"] = vd.DropoutNormal(torch.ones(8, 5), torch.full((8, 5), math.nan))
    with pytest.raises(ValueError, match="site 'net.0.weight': expected a log_alpha for every weight"):
        vd.threshold_curve(bnn, guide, lambda net: 1.0)
