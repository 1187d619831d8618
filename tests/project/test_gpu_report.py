"""The table that gpu_report.py makes of benchmark.py's measurements, tested without a GPU."""

from __future__ import annotations

import sys

import pytest

from helpers.paths import EXAMPLES

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests were taken out of the repository")
if EXAMPLES.exists():
    sys.path.insert(0, str(EXAMPLES))
    import benchmark  # noqa: E402
    import gpu_report  # noqa: E402


def test_a_row_has_its_numbers_and_its_name():
    row = {"problem": "LeNet", "program": "compiled-svi", "ms": "0.1234", "over_graph": "0.5"}
    row |= {"over_deterministic": "2", "peak_MB": "1234.5", "first_s": "3.21"}
    line = gpu_report.table([row]).splitlines()[-1]
    assert line == "| LeNet | **`CompiledSVI`** | 0.123 | 0.50 | 2.00 | 1,234 | 3.2 |"


def test_a_number_that_is_not_there_is_left_empty():
    row = dict.fromkeys(("ms", "over_graph", "over_deterministic", "peak_MB", "first_s"), "") | {"ms": "1"}
    line = gpu_report.table([row | {"problem": "LeNet", "program": "numpyro"}]).splitlines()[-1]
    assert line == "| LeNet | NumPyro's `SVI`, `jit` | 1.000 |  |  |  |  |"


def test_what_could_not_be_measured_says_why():
    table = gpu_report.table([{"problem": "LeNet", "failed": "not measured: no time left"}])
    assert table.splitlines()[-1] == "| LeNet | all | not measured: no time left | | | | |"
    assert {line.count("|") for line in table.splitlines()} == {len(gpu_report.HEADER) + 1}


def test_a_program_that_fails_or_hangs_is_told():
    assert gpu_report.run(["-c", "raise SystemExit('out of memory')"], 60) == "not measured: out of memory"
    assert gpu_report.run(["-c", "pass"], 60) is None
    assert gpu_report.run(["-c", "pass"], 5) == "not measured: no time left"


@pytest.mark.parametrize("options", gpu_report.PROBLEMS.values() if EXAMPLES.exists() else [])
def test_benchmark_knows_the_options_of_every_problem(options):
    programs = [name for name in gpu_report.PROGRAMS if name != "numpyro" or "--bf16" not in options]
    args = benchmark.arguments(
        ["--device=cuda", *options, "--widths", "--depths", "--batches", "--programs", *programs]
    )
    assert len(benchmark.problems(args)) == 1
