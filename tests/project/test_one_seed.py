"""Tables and pictures of examples with one seed, which has no standard error."""

from __future__ import annotations

import sys

import pytest
import torch

from helpers.paths import EXAMPLES

if not EXAMPLES.exists():
    pytest.skip("the tests were taken out of the repository", allow_module_level=True)


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


def test_a_table_has_an_error_where_there_are_several_seeds():
    from _seeds import mean_and_error, table

    assert table([{"one": {"NLL": 1.5}}]).split() == ["NLL", "one", "1.50"]
    assert table([{"one": {"NLL": 1.0}}, {"one": {"NLL": 2.0}}]).split("one")[1].strip() == "1.50 +- 0.50"
    assert mean_and_error(torch.tensor([3.0])) == "3.00"
    assert mean_and_error(torch.tensor([1.0, 3.0]), 1) == "2.0 +- 1.0"


@pytest.mark.slow
def test_a_picture_has_a_band_where_there_are_several_seeds(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import _figures

    drawn = []
    monkeypatch.setattr(_figures, "_save", lambda figure, path: drawn.append(figure.axes[0]))
    for seeds in (1, 2):
        _figures.cumulative_regret({name: [[1.0, 2.0]] * seeds for name in "abc"}, tmp_path / "regret.png")
    one, two = drawn
    assert not one.collections and "one seed" in one.get_title()
    assert len(two.collections) == 3 and "standard error of 2 seeds" in two.get_title()


@pytest.mark.slow
def test_two_backends_are_no_standard_errors_apart_where_there_are_none():
    pytest.importorskip("sklearn")
    from compare_backends import BACKENDS, COMPARED, MEASURES, table

    runs = [{measure: 2.0 + seed for measure in MEASURES} for seed in range(2)]
    one, two = (table({backend: runs[:seeds] for backend in BACKENDS}) for seeds in (1, 2))
    assert "+-" not in one and "0.00" not in one
    assert two.count("+- 0.5") == 2 * len(MEASURES) and two.count(" 0.00\n") + two.endswith(" 0.00") == len(COMPARED)
