"""README: its program runs, it is short, and its guides and numbers are those of the pages it links to."""

from __future__ import annotations

import re

import pytest

from helpers.pages import DOCS, programs
from helpers.paths import README
from pyro_vd import guides

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests were taken out of the repository")


def test_the_program_runs(capsys):
    # Fewer steps: what is tested is that the program runs as printed, not how well it trains.
    source = programs(README)[0].replace("range(800)", "range(3)")
    exec(compile(source, "README.md, program", "exec"), {})
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "compression" in printed and "Linear(in_features=64" in printed


def test_there_are_no_other_programs():
    assert len(programs(README)) == 1


def test_the_program_and_the_page_are_short():
    assert len(programs(README)[0].strip().splitlines()) <= 25
    assert len(README.read_text().splitlines()) <= 150


def test_every_guide_is_in_the_table():
    text = README.read_text()
    for name in vars(guides):
        assert not name.startswith("Auto") or f"`{name}`" in text, name


def test_numbers_of_the_headline_results_are_those_of_the_results():
    section = re.search(r"^## Results.*?(?=^\*\*Know)", README.read_text(), flags=re.S | re.M)
    assert section
    known = (DOCS / "results.md").read_text()
    for number in re.findall(r"\d+\.\d+", section[0]):
        assert number in known or number == "0.15", number  # 7.7 / 50, variances of the first layer
