"""The versions that were tried are the same wherever they are written: bounds, sets, README and the private corners."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from helpers.paths import README

ROOT = README.parent
pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests were taken out of the repository")
CORNERS = {
    "_torch.py": "torch",
    "_pyro.py": "pyro-ppl",
    "compiled/_compiler.py": "torch",
    "numpyro/_jax.py": "jax quax",
    "numpyro/_numpyro.py": "numpyro",
}


def pins(name):
    lines = (line.split("==") for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#"))
    return {package: Version(version) for package, version in lines}


def test_the_bounds_are_the_lowest_versions_that_were_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    written = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    bounds = {one.name: one.specifier for one in map(Requirement, written)}
    lowest = pins(".ci/lowest.txt")
    assert lowest.pop("jaxlib") == lowest["jax"]
    for package, version in lowest.items():
        assert [(one.operator, Version(one.version)) for one in bounds[package]] == [(">=", version)], package


@pytest.mark.parametrize("corner", CORNERS)
def test_a_private_corner_says_in_which_versions_it_was_tried(corner):
    text = (ROOT / "pyro_vd" / corner).read_text()
    lowest, pinned = pins(".ci/lowest.txt"), pins("constraints.txt")
    for package in CORNERS[corner].split():
        found = re.search(rf"[Tt]ried with (?:[^:\n]* and )?{package} ([\d.]*\d)(?: to ([\d.]*\d))?", text)
        assert found, f"{corner} does not say with which versions of {package} it was tried"
        assert Version(found[1]) == lowest[package] and Version(found[2] or found[1]) >= pinned[package]


def test_readme_names_the_versions_of_the_sets():
    text = " ".join(README.read_text().split())
    assert f"torch {pins('constraints.txt')['torch']} and the versions of [constraints.txt]" in text
    lowest = pins(".ci/lowest.txt")
    assert f"torch {lowest['torch']}, jax {lowest['jax']} and" in text and "[.ci/lowest.txt](.ci/lowest.txt)" in text


def test_every_python_that_is_claimed_is_tried_by_the_workflow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = {one.rpartition(" ")[2] for one in project["classifiers"] if re.search(r"Python :: \d\.\d", one)}
    tried = set(re.findall(r'python(?:-version)?: "([\d.]+)"', (ROOT / ".github/workflows/check.yml").read_text()))
    assert claimed == tried and f">={min(claimed, key=Version)}" == project["requires-python"]
