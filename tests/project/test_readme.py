"""README: its programs run, its names exist, its numbers have a command."""

from __future__ import annotations

import re

import pytest

import pyro_vd as vd
from helpers.paths import README
from pyro_vd import guides

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests were taken out of the repository")


def _programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


@pytest.mark.parametrize("program", range(4))
def test_programs_run(program, capsys):
    # Fewer steps: what is tested is that the program runs as printed, not how well it trains.
    source = _programs()[program].replace("range(800)", "range(3)").replace("range(400)", "range(3)")
    names: dict = {}
    exec(compile(source, f"README.md, program {program}", "exec"), names)
    assert "compression" in capsys.readouterr().out


def test_there_are_no_other_programs():
    assert len(_programs()) == 4


def test_the_first_program_is_short():
    assert len(_programs()[0].strip().splitlines()) <= 25


def test_every_guide_is_in_the_table():
    text = README.read_text()
    for name in vars(guides):
        if name.startswith("Auto"):
            assert f"`{name}" in text, name


def test_estimators_are_in_the_table():
    for estimator in vd.estimators.ESTIMATORS:
        assert f'`"{estimator}"`' in README.read_text()


def test_result_tables_have_commands():
    for section in re.findall(r"^## Results.*?(?=^## )", README.read_text(), flags=re.S | re.M):
        assert "python examples/" in section
