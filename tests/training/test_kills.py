"""Trainings of every kind that are killed, in a step and while they save, end as those that are not."""

from __future__ import annotations

import sys

import pytest

from helpers.killed_runs import kill_runs

pytestmark = [
    pytest.mark.slow,  # processes that import PyTorch or JAX
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
]


@pytest.mark.parametrize("kind", ["compiled", "numpyro"])
def test_a_run_that_was_killed_four_times_ends_as_if_undisturbed(kind, tmp_path):
    counts = kill_runs(kind, 4, tmp_path)
    assert counts["step"] + counts["saving"] == 4 and counts["steps"] >= 4
