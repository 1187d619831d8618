"""What the pictures hold: heights, places, labels; refusals."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd

pytestmark = pytest.mark.slow

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()
    plt.close(figure)


def complete(axes, ax) -> None:
    assert axes is ax
    assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel() and axes.get_legend()


def test_reliability_bars_stand_on_their_bins_with_their_counts(ax):
    sure = torch.tensor([0.95, 0.92, 0.91, 0.75, 0.72, 0.55])
    probs = torch.stack([sure, 1 - sure], -1)
    complete(vd.plots.reliability_diagram(probs, torch.tensor([0, 0, 1, 0, 1, 1]), bins=10, ax=ax), ax)
    bars = sorted((bar.get_x(), bar.get_height()) for bar in ax.patches)
    np.testing.assert_allclose(bars, [(0.5, 0.0), (0.7, 0.5), (0.9, 2 / 3)], atol=1e-6)
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]
    # (0.55 + 2 * |0.5 - 0.735| + 3 * |2/3 - 0.9267|) / 6
    assert ax.get_title() == f"6 examples, calibration error {100 * (0.55 + 0.47 + 0.78) / 6:.1f} %"
    assert vd.metrics.calibration_error(probs, torch.tensor([0, 0, 1, 0, 1, 1]), 10) == pytest.approx(0.3, abs=1e-6)


def test_entropies_of_each_kind_add_to_one(ax):
    prediction = vd.Predictive(dist.Categorical(logits=torch.randn(5, 300, 4)), "y")
    density = torch.linspace(-2.0, 1.0, 70)  # of densities they may be negative
    complete(vd.plots.entropy_histogram({"in": prediction, "out": density}, bins=20, ax=ax), ax)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["in (300)", "out (70)"] and "nats" in ax.get_xlabel()
    lines = [patch.get_xy() for patch in ax.patches if not patch.get_fill()]
    assert len(lines) == 2 and min(xy[:, 0].min() for xy in lines) == -2.0
    for xy in lines:  # each height twice, at the two ends of its bin
        assert xy[:, 1].sum() / 2 == pytest.approx(1.0)


def test_bands_are_those_of_the_two_variances(ax):
    x = torch.tensor([2.0, 0.0, 1.0])
    locs = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 5.0]])
    prediction = vd.Predictive(dist.Normal(locs, 0.5), "y")
    complete(vd.plots.regression_band(x, prediction, (x, x), deviations=2.0, ax=ax), ax)

    def at(vertices, place):
        return sorted({round(float(y), 4) for px, y in vertices if px == place})

    outer, inner = (band.get_paths()[0].vertices for band in ax.collections)

    assert at(inner, 2.0) == [0.0, 2.0] and at(inner, 0.0) == [0.0, 2.0] and at(inner, 1.0) == [4.0, 6.0]
    whole = 2 * np.sqrt(0.25 + 1.0)
    np.testing.assert_allclose(at(outer, 2.0), [1 - whole, 1 + whole], atol=1e-3)
    assert at(outer, 1.0) == [4.0, 6.0]


def test_risk_is_drawn_against_percent_kept(ax):
    curve = vd.metrics.risk_coverage(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.arange(4.0))
    complete(vd.plots.risk_coverage_curve({"entropy": curve}, ax=ax, loss="share wrong"), ax)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[25, 0], [50, 0], [75, 1 / 3], [100, 0.5]])
    assert "share wrong" in ax.get_ylabel() and "%" in ax.get_xlabel()


def test_without_axes_a_figure_is_made():
    axes = vd.plots.entropy_histogram({"in": torch.zeros(3)})
    assert axes.figure is plt.gcf()
    plt.close(axes.figure)


NORMAL = vd.Predictive(dist.Normal(torch.zeros(2, 3), 1.0), "y")
REFUSED = {
    "no axes": (lambda: vd.plots.entropy_histogram({"in": torch.zeros(3)}, ax=1), TypeError, "ax to be axes"),
    "no dict": (lambda: vd.plots.entropy_histogram(torch.zeros(3)), TypeError, "expected a dict"),
    "empty": (lambda: vd.plots.entropy_histogram({}), ValueError, "1 to 5 entries, got 0"),
    "NaN": (lambda: vd.plots.entropy_histogram({"in": torch.tensor([np.nan])}), ValueError, "'in' to be finite"),
    "inputs": (lambda: vd.plots.regression_band(torch.zeros(4), NORMAL), ValueError, "3 predictions, .*got 4 inputs"),
    "no width": (lambda: vd.plots.regression_band(torch.zeros(3), NORMAL, deviations=0), ValueError, "deviations"),
    "no prediction": (lambda: vd.plots.regression_band(torch.zeros(3), torch.zeros(3)), TypeError, "a Predictive"),
    "no curve": (lambda: vd.plots.risk_coverage_curve({"a": torch.zeros(3)}), TypeError, "what risk_coverage returns"),
    "logits": (lambda: vd.plots.reliability_diagram(torch.randn(3, 2), torch.zeros(3)), ValueError, "sum to 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"regression_band: expected matplotlib, found none; .*pyro_vd\[plots\]"):
        vd.plots.regression_band(torch.zeros(3), NORMAL)
