"""What each program of examples/ must print and write, as ``check_NAME(output, folder)``."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

BENCHMARKED = [
    "deterministic",
    "lrt",
    "svi-weight-draws",
    "svi-lrt",
    "svi-vd",
    "vd-loss",
]
PICTURES = ("training.png", "threshold.png", "log_alpha.png", "kept_inputs.png")
PNG = b"\x89PNG"


def check_mini_vd(output: str, out: Path) -> None:
    for pattern in (r"step +19  loss +(\S+) nats per example", r"held-out error, all weights: (\S+)",
                    r"held-out error, pruned: (\S+)"):  # fmt: skip
        found = re.search(pattern, output)
        assert found and math.isfinite(float(found[1])), pattern
    assert re.search(r"hidden layer: \d+ of 400 weights kept", output)


def check_sparse_mlp(output: str, out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    assert result.pop("arguments")["epochs"] == 2
    for name in ("error_mean_network", "error_pruned", "error_posterior_samples", "nll_posterior_samples"):
        assert math.isfinite(result[name]), name
    assert result["compression"] >= 1 and result["threshold"] == 3.0
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(PNG), name
    assert re.search(r"^net\.0\.weight +300x64 +19,200 ", output, re.MULTILINE)
    assert f"held-out error, pruned network        {result['error_pruned']:6.2f} %" in output


def check_gradient_variance(output: str, out: Path) -> None:
    numbers = [value for value in leaves(json.loads((out / "result.json").read_text())) if isinstance(value, float)]
    assert numbers and all(map(math.isfinite, numbers))
    assert (out / "variance.png").read_bytes().startswith(PNG)
    for estimator in ("local", "per_example", "shared"):
        assert re.search(rf"^{estimator} .*\dx$", output, re.MULTILINE), estimator


def check_gpu_report(output: str, out: Path) -> None:
    assert output == "no CUDA: nothing is measured here\n"  # tests/project/test_gpu_report.py has the rest


def check_dropout_families(output: str, out: Path) -> None:
    errors = leaves(json.loads((out / "result.json").read_text())["error"])
    assert errors and all(0 <= error <= 100 for error in errors)
    assert (out / "families.png").read_bytes().startswith(PNG)
    assert "3 x 8" in output


def check_random_labels(output: str, out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    assert 10 <= result["chance"] <= 30
    families = {name: row for name, row in result.items() if name not in ("arguments", "chance")}
    assert len(families) == 2
    for name, row in families.items():
        assert 0 <= row["training_accuracy"] <= 100 and 0 <= row["kept"] <= row["weights"] == 64 * 300 + 31_000
        assert re.search(rf"^{name} .* %", output, re.MULTILINE), name


def check_deploy(output: str, out: Path) -> None:
    (run,) = json.loads((out / "result.json").read_text())["runs"]
    assert set(run["rows"]) == {"sparse VD", "magnitude"}
    for name, rows in run["rows"].items():
        assert list(rows) == ["dense", "zeros", "shrunk", "CSR", "indexed"]
        assert (
            rows["zeros"]["error"] == pytest.approx(rows["shrunk"]["error"], abs=1)
            and rows["dense"]["weights"] > 50_000
        )
        assert rows["shrunk"]["weights"] <= rows["zeros"]["weights"] < rows["dense"]["weights"]
        assert all(value > 0 for row in rows.values() for key, value in row.items() if key.startswith("ms"))
        assert re.search(rf"^{name}, CSR +\d", output, re.MULTILINE)
    kept = [rows["zeros"]["weights"] for rows in run["rows"].values()]
    assert abs(kept[0] - kept[1]) <= 0.001 * 50_200, "the same budget"
    assert (out / "deploy.png").read_bytes().startswith(PNG)


def check_distributed(output: str, out: Path, processes: int = 1) -> None:
    assert output.startswith(f"{processes} processes, 44,710 trained numbers in each\nsite ")
    assert 0 <= float(re.search(r"^held-out error after pruning: (\S+) %$", output, re.MULTILINE)[1]) < 50


def check_lightning_digits(output: str, out: Path) -> None:
    assert re.search(
        r"^sparsity after epoch 2, log_alpha > 3 pruned\nsite .*\nnet\.0\.weight +300x64 ", output, re.MULTILINE
    )
    assert 0 <= float(re.search(r"^held-out error: (\S+) %$", output, re.MULTILINE)[1]) < 50


def check_regression_intervals(output: str, out: Path) -> None:
    (run,) = json.loads((out / "result.json").read_text())["runs"]
    assert list(run) == ["deterministic", "ensemble of 5", "binary dropout", "sparse VD", "mean field", "low rank"]
    for name, row in run.items():
        assert all(0 <= row[f"coverage {where}"] <= 100 for where in ("beside it", "in the gap"))
        assert all(map(math.isfinite, row.values())) and row["width in the gap"] > 0
        assert (row["epistemic in the gap"] > 0) == (name != "deterministic")
        assert re.search(rf"^{name} +\d+\.\d\d +-?\d+\.\d\d +", output, re.MULTILINE), name  # one seed, no error
    assert (out / "intervals.png").read_bytes().startswith(PNG)


def check_uncertainty(output: str, out: Path) -> None:
    (run,) = json.loads((out / "result.json").read_text())["runs"]
    assert list(run)[:4] == ["deterministic", "MC dropout", "ensemble of 5", "mean field, weights"] and len(run) == 7
    for name, row in run.items():
        assert set(row) == {"error", "NLL", "ECE", "seconds"} | {
            f"{kind} {score}" for kind in ("negative", "noise") for score in ("AUROC", "FPR95")
        }
        assert all(0 <= value <= 100 for value in row.values()) and row["error"] < 80
        assert re.search(rf"^{name} +\d+\.\d\d +-?\d+\.\d\d +", output, re.MULTILINE), name  # one seed, no error
    assert (out / "uncertainty.png").read_bytes().startswith(PNG)


def check_any_network(output: str, out: Path) -> None:
    assert re.search(r"^net.up.weight +16x8x2x2 +512 +local +conv_transpose2d$", output, re.MULTILINE)
    assert "100.0% of the weights are sampled locally\n0 warnings\n" in output
    first, last = map(float, re.findall(r"(\d+\.\d+) in the", output))
    assert last < first
    assert len(json.loads((out / "result.json").read_text())["nats"]) == 20
    assert (out / "loss.png").read_bytes().startswith(PNG)


def check_lora(output: str, out: Path) -> None:
    (run,) = json.loads((out / "result.json").read_text())["runs"]
    random = [name for name in run if name.startswith("random")]
    assert "plain LoRA" in run and "MC dropout 0.1" in run and len(random) == 2
    for name, row in run.items():
        assert 0 <= row["error"] <= 100 and math.isfinite(row["NLL"]) and 0 <= row["ECE"] <= 100
        assert 0 <= row["ranks"] <= 24 and row["bytes"] > 1000
        assert re.search(rf"^{name} +{row['error']:.1f} +{row['NLL']:.3f} ", output, re.MULTILINE), name
    assert (out / "adapter" / "adapter_config.json").exists()


def check_bandit(output: str, out: Path) -> None:
    regret = json.loads((out / "result.json").read_text())["regret"]
    assert list(regret) == ["coherent draws", "local draws", "epsilon-greedy"]
    assert all(len(run) == 4 and min(run) >= 0 for runs in regret.values() for run in runs)
    assert all(re.search(rf"^{policy} +[\d.]+ \+- [\d.]+ +[\d.]+ \+- ", output, re.MULTILINE) for policy in regret)
    assert (out / "regret.png").read_bytes().startswith(PNG)


def check_benchmark(output: str, out: Path) -> None:
    with (out / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["width"], row["program"]) for row in rows] == [(w, name) for w in ("8", "16") for name in BENCHMARKED]
    for row in rows:
        assert float(row["ms"]) >= float(row["fastest_ms"]) > 0 and float(row["floor_ms"]) > 0
        assert float(row["peak_MB"] or "1") > 0 and float(row["first_s"]) > 0
        assert re.search(rf"^{row['program']} +{float(row['ms']):.3f} ", output, re.MULTILINE), row["program"]
    assert (out / "benchmark.png").read_bytes().startswith(PNG)
    assert re.search(r"^time ~ weights \*\* exponent: over 6,352 to 12,704", output, re.MULTILINE)


def check_benchmark_predict(output: str, out: Path) -> None:
    rows = re.findall(r"^(\S.*?) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    assert len(rows) == 10 and {row[1] for row in rows} == {"1", "3"}
    assert all(float(median) >= float(fastest) > 0 for _, _, median, fastest, _ in rows)
    assert [row[4] for row in rows if row[0] == "loop by hand"] == ["1.00", "1.00"]
    assert len(json.loads((out / "result.json").read_text())["rows"]) == 10


def check_posterior_distance(output: str, out: Path) -> None:
    (run,) = json.loads((out / "result.json").read_text())["runs"]
    assert list(run) == ["NUTS, another chain", "mean field", "low rank", "variational dropout"]
    for name, row in run.items():
        assert 0 <= row["variation"] <= 1 and row["deviation, gap"] > 0 and math.isfinite(row["log density"])
        assert re.search(rf"^ *{name} +{row['mean']:.3f} ", output, re.MULTILINE), name
    assert (out / "posterior.png").read_bytes().startswith(PNG)


def check_sparse_jax(output: str, out: Path) -> None:
    (line,) = output.splitlines()[1:]
    assert re.fullmatch(r" +90 % +10( +[\d.]+){3}  (dense|bcoo|bcsr), [\d.]+x", line), line


def leaves(tree: object) -> list:
    """The values of nested dicts and lists."""
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return [tree] if children is None else [leaf for child in children for leaf in leaves(child)]


def check_compare_backends(output: str, out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    for backend in ("pyro", "numpyro"):
        (run,) = result["runs"][backend]
        assert len(run["loss"]) == 2 and run["loss"][-1] < run["loss"][0]
        assert 0 <= run["sparsity"] < 100 and math.isfinite(run["NLL"]) and run["peak memory"] > 100
    assert {row["program"] for row in result["steps"]} == {"numpyro", "lrt-jax"}
    assert (out / "backends.png").read_bytes().startswith(PNG)
    assert re.search(r"^mean loss curves: .* % apart", output, re.MULTILINE)
    assert re.search(r"^program .*/ lrt-jax.*\nnumpyro ", output, re.MULTILINE)


# file name: (arguments, "{out}" stands for an empty folder; check of standard output and that folder)
