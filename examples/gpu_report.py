"""Every number of this library on a GPU, in one command and under eight minutes: one Markdown table.

    python examples/gpu_report.py                          # all rows
    python examples/gpu_report.py --tests --data-dir data  # the tests marked gpu first, MNIST from DIR at the end

Runs ``benchmark.py --device cuda`` for each net and ``sparse_mlp.py`` on MNIST, each in a process of its own, and stops
in time (--seconds): a row that no time is left for reads "not measured". Without CUDA it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
PROGRAMS = {
    "deterministic-compiled": "deterministic, `torch.compile`, fused Adam",
    "lrt-cuda-graph": "hand-written local reparameterization, CUDA graph",
    "svi-weight-draws": "`pyro.infer.SVI`, `TraceMeanField_ELBO`, weight draws",
    "vd-loss": "`TraceVD_ELBO` as a module, eager",
    "compiled-svi": "**`CompiledSVI`**",
    "numpyro": "NumPyro's `SVI`, `jit`",
}
# Arguments of benchmark.py, by what a row is called; those that matter most first.
PROBLEMS: dict[str, list[str]] = {
    "LeNet-300-100, batch 100": ["--net=lenet-300-100"],
    "LeNet-5, batch 100": ["--net=lenet-5"],
    "MLP of width 2048, batch 100": ["--net=mlp", "--width=2048"],
    "MLP of 100 million weights, batch 512": ["--net=mlp", "--width=9600", "--batch=512"],
    "the same, bf16": ["--net=mlp", "--width=9600", "--batch=512", "--bf16"],
}
HEADER = ("net", "program", "ms a step", "to hand-written CUDA graph", "to deterministic", "peak MB", "first steps, s")


class Clock:
    """What is left of the time for everything."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self, keep: float = 0.0) -> float:
        return max(0.0, self.end - time.monotonic() - keep)


def run(command: list[str], seconds: float) -> str | None:
    """Run a program of this folder; None if it succeeded in time, else why not."""
    if seconds < 20:
        return "not measured: no time left"
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=HERE, timeout=seconds, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not measured: not ready within {seconds:.0f} s"
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr, flush=True)
        return f"not measured: {(done.stderr.strip().splitlines() or ['no message'])[-1][:150]}"
    return None


def benchmark(name: str, options: list[str], clock: Clock, blocks: int, keep: float) -> list[dict[str, str]]:
    """The rows of one problem."""
    with tempfile.TemporaryDirectory() as folder:
        programs = [one for one in PROGRAMS if one != "numpyro" or "--bf16" not in options]
        command = ["benchmark.py", "--device=cuda", f"--blocks={blocks}", f"--out={folder}", *options]
        command += ["--widths", "--depths", "--batches"]
        failed = run([*command, "--programs", *programs], clock.left(keep))
        print(f"{name}: {failed or 'measured'}, {clock.left():.0f} s left", file=sys.stderr, flush=True)
        if failed:
            return [{"problem": name, "failed": failed}]
        with open(f"{folder}/benchmark.csv") as file:
            rows = [row | {"problem": name} for row in csv.DictReader(file)]
    absent = set(programs) - {row["program"] for row in rows}  # what it needs is not installed, or has no GPU
    return [*rows, *({"problem": name, "failed": f"{PROGRAMS[one]}: not installed for this device"} for one in absent)]


def mnist(data_dir: str, clock: Clock) -> str:
    """One line: training on MNIST end to end."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        command = ["sparse_mlp.py", "--dataset=mnist", "--epochs=60", "--quiet", f"--data-dir={data_dir}"]
        failed = run([*command, f"--out={folder}"], clock.left())
        if failed:
            return failed
        result = json.loads(Path(folder, "result.json").read_text())
    return (
        f"{time.monotonic() - start:.0f} s in all, error after pruning {result['error_pruned']:.2f} %, compression "
        f"{result['compression']:.1f}x, NLL {result['nll_posterior_samples']:.4f} nats"
    )


def table(rows: list[dict[str, str]]) -> str:
    """Milliseconds, ratios and memory as Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['problem']} | all | {row['failed']} | | | | |")
            continue
        numbers = [row["ms"], row["over_graph"], row["over_deterministic"], row["peak_MB"], row["first_s"]]
        formats = ["{:.3f}", "{:.2f}", "{:.2f}", "{:,.0f}", "{:.1f}"]
        cells = [f.format(float(n)) if n else "" for f, n in zip(formats, numbers, strict=True)]
        lines.append(f"| {row['problem']} | {PROGRAMS[row['program']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        print("no CUDA: nothing is measured here")
        return
    clock = Clock(args.seconds)
    if args.tests:
        command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(HERE.parent / "tests")]
        tests = subprocess.run([sys.executable, *command], cwd=HERE.parent, timeout=clock.left(), check=False)
        print(f"tests marked gpu: exit status {tests.returncode}, {clock.left():.0f} s left", flush=True)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    rows: list[dict[str, str]] = []
    keep = args.mnist_seconds if args.data_dir else 0.0
    for name, options in PROBLEMS.items():
        rows += benchmark(name, options, clock, args.blocks, keep)
    print(f"\n{table(rows)}\n", flush=True)
    if args.data_dir:
        print(f"MNIST, LeNet-300-100, 60 epochs: {mnist(args.data_dir, clock)}")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=450.0, help="time for everything")
    parser.add_argument("--mnist-seconds", type=float, default=120.0, help="of these, kept for MNIST")
    parser.add_argument("--blocks", type=int, default=9, help="of steps, for the median")
    parser.add_argument("--tests", action="store_true", help="run the tests marked gpu first")
    parser.add_argument("--data-dir", help="folder of the IDX files of MNIST; without it MNIST is left out")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(arguments())
