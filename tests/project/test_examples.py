"""Every example runs as a user runs it, with tiny arguments; one that is not in the table fails the test."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.example_checks import (
    BENCHMARKED,
    check_any_network,
    check_bandit,
    check_benchmark,
    check_benchmark_predict,
    check_compare_backends,
    check_deploy,
    check_distributed,
    check_dropout_families,
    check_gpu_report,
    check_gradient_variance,
    check_lightning_digits,
    check_lora,
    check_mini_vd,
    check_posterior_distance,
    check_random_labels,
    check_regression_intervals,
    check_sparse_jax,
    check_sparse_mlp,
    check_uncertainty,
)
from helpers.paths import EXAMPLES

QUIET = ["--quiet", "--out", "{out}"]
SMALL = ["--width", "8", "--depth", "1", "--batch", "32", "--threads", "1", "--blocks", "2", "--out", "{out}"]
TABLE = {
    "bandit.py": (["--quick", "--rounds", "4", *QUIET], check_bandit),
    "any_network.py": (["--net", "unet", "--steps", "20", *QUIET], check_any_network),
    "benchmark.py": (
        ["--net", "mlp", "--widths", "8", "16", "--depths", "--batches", "--programs", *BENCHMARKED, *SMALL],
        check_benchmark,
    ),
    "benchmark_predict.py": (
        ["--batches", "1", "3", "--draws", "3", "--rounds", "1", "--threads", "1", "--out", "{out}"],
        check_benchmark_predict,
    ),
    "compare_backends.py": (
        [
            "--epochs",
            "2",
            "--seeds",
            "1",
            "--hidden",
            "8",
            "--eager",
            "--blocks",
            "1",
            "--programs",
            "numpyro",
            "lrt-jax",
        ]
        + QUIET,
        check_compare_backends,
    ),
    "deploy.py": (["--quick", "--epochs", "2", *QUIET], check_deploy),
    "distributed.py": (["--quick"], check_distributed),
    "dropout_families.py": (["--epochs", "1", "--seeds", "1", "--widths", "8", *QUIET], check_dropout_families),
    "gpu_report.py": ([], check_gpu_report),
    "gradient_variance.py": (
        ["--epochs", "1", "--batch", "10", "--draws", "4", "--largest-batch", "20", *QUIET],
        check_gradient_variance,
    ),
    "lightning_digits.py": (["--quick", "--epochs", "2"], check_lightning_digits),
    "lora.py": (["--quick", "--rank", "2", *QUIET], check_lora),
    "mini_vd.py": (["--steps", "20"], check_mini_vd),
    "posterior_distance.py": (["--quick", *QUIET], check_posterior_distance),
    "random_labels.py": (["--epochs", "2", "--examples", "100", *QUIET], check_random_labels),
    "regression_intervals.py": (["--quick", *QUIET], check_regression_intervals),
    "sparse_jax.py": (["--quick"], check_sparse_jax),
    "sparse_mlp.py": (["--epochs", "2", "--eager", "--device", "cpu", *QUIET], check_sparse_mlp),
    "uncertainty.py": (["--quick", "--examples", "500", "--draws", "5", *QUIET], check_uncertainty),
}


NEEDS = {"lora.py": ("peft", "transformers")}  # packages beside those of the extra test


def run(name: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_table_is_complete():
    present = {path.name for path in EXAMPLES.glob("*.py") if not path.name.startswith("_")}
    assert present == set(TABLE), "every example needs a row in TABLE"


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_example(name, tmp_path):
    for package in NEEDS.get(name, ()):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    arguments, check = TABLE[name]
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    done = run(name, [argument.replace("{out}", str(out)) for argument in arguments], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    assert "nan" not in done.stdout.lower()
    check(done.stdout, out)
    assert not list(folder.iterdir()), "an example writes to --out only"


@pytest.mark.slow
def test_distributed_on_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(EXAMPLES / "distributed.py"), "--epochs", "3"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    check_distributed(done.stdout, tmp_path, processes=2)


@pytest.mark.slow
def test_any_network_says_why_a_step_is_not_compiled(tmp_path):
    done = run("any_network.py", ["--compiled", "--nets", "packed", "--batch", "8"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^packed +no +[\d.]+ +[\d.]+ *\n    .*it packs sequences", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_sparse_mlp_trains_on_numpyro(tmp_path):
    out = tmp_path / "out"
    done = run("sparse_mlp.py", ["--epochs", "2", "--backend", "numpyro", "--quiet", "--out", str(out)], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    check_sparse_mlp(done.stdout, out)
    assert json.loads((out / "result.json").read_text())["error_mean_network"] < 80  # of ten classes: it learned


@pytest.mark.slow
def test_sparse_mlp_chooses_its_threshold_on_validation_data(tmp_path):
    out = tmp_path / "out"
    arguments = ["--epochs", "2", "--threshold", "auto", "--eager", "--device", "cpu", "--quiet", "--out", str(out)]
    done = run("sparse_mlp.py", arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((out / "result.json").read_text())
    found = re.search(r"^threshold (\S+): the sparsest within 0.2 points", done.stdout, re.MULTILINE)
    assert found and float(found[1]) == pytest.approx(result["threshold"], abs=1e-3)
    assert re.search(r"^ +inf +50,200 +0.00%", done.stdout, re.MULTILINE)
    assert math.isfinite(result["error_pruned"])


@pytest.mark.slow
def test_moments_against_draws(tmp_path):
    done = run("benchmark_predict.py", ["--moments", "--depths", "1", "2", "--reference", "50", "--only-depths",
                                        "--out", str(tmp_path / "out")], tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ratios = re.findall(r"^(ReLU|tanh) +(\d) +([\d.]+) \+- ", done.stdout, re.MULTILINE)
    assert [row[:2] for row in ratios] == [("ReLU", "1"), ("ReLU", "2"), ("tanh", "1"), ("tanh", "2")]
    assert all(0.7 < float(ratio) < 1.3 for *_, ratio in ratios)  # 50 draws: a standard error of 0.1 an output


@pytest.mark.slow
def test_predictions_of_numpyro(tmp_path):
    pytest.importorskip("flax")
    small = ["--batches", "2", "--draws", "3", "--rounds", "1", "--threads", "1"]
    done = run("benchmark_predict.py", ["--numpyro", *small, "--out", str(tmp_path / "out")], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^(\S+) +2 +[\d.]+ +[\d.]+ +([\d.]+)$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["numpyro.infer.Predictive", "posterior_predictive", "predictive_distribution"]
    assert rows[0][1] == "1.00" and all(0 < float(ratio) < 100 for _, ratio in rows)


def test_missing_data_stops_with_one_sentence(tmp_path):
    """No network: every download goes through a proxy that is not there."""
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "sparse_mlp.py"), "--dataset", "mnist", "--data-dir", str(tmp_path / "data")],
        cwd=tmp_path, env=os.environ | proxies | {"no_proxy": "", "NO_PROXY": ""}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "mnist: expected train-images-idx3-ubyte" in done.stderr and "--data-dir" in done.stderr
