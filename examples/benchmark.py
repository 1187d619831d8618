"""Time, memory and compilation of a training step: deterministic, hand-written, Pyro, CompiledSVI, NumPyro and JAX.

    python examples/benchmark.py                                     # every net and size
    python examples/benchmark.py --net lenet-300-100 --fresh-cache   # one net, and what compiling it takes
    python examples/benchmark.py --net mlp --widths 1024 2048 4096 --depths --batches
    python examples/benchmark.py --net lenet-300-100 --memory-steps 10000
    python examples/benchmark.py --net lenet-300-100 --waiting 60    # with and without CompiledSVI(warm=True)

All programs train the same net from the same weights, in turn, a short block of steps each, on random images. Printed
are the median over blocks, the fastest block, ratios of medians, and the floor (see _machine.py). benchmark.csv
has every number; benchmark.png shows the time of a step of the "mlp" against its weights, depth and batch.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import _machine
import _options
import _report
import _waiting
import pyro
import torch
from _measurement import Running, resident
from _programs import PROGRAMS, Problem

NETS = ("lenet-300-100", "lenet-5", "mlp")
BASELINES = {
    "over_lrt": "lrt-compiled",
    "over_graph": "lrt-cuda-graph",
    "over_jax": "lrt-jax",
    "over_deterministic": "deterministic-compiled",
}


def problems(args: argparse.Namespace) -> list[Problem]:
    """LeNets at the common batch; of "mlp" width, depth and batch vary one at a time."""
    base = {"width": args.width, "depth": args.depth, "batch": args.batch, "device": args.device}
    lists = {"width": args.widths, "depth": args.depths, "batch": args.batches}
    swept = [base | {name: value} for name, values in lists.items() for value in values] or [base]
    return list(dict.fromkeys(Problem(net, **one) for net in args.net for one in (swept if net == "mlp" else [base])))


def measure(problem: Problem, args: argparse.Namespace) -> list[_report.Row]:
    """Run every program in turn; a row for each."""
    torch._dynamo.reset()  # it compiles one function so often and no more, over all problems
    batches, running = problem.batches(), []
    for name in args.programs:
        try:
            running.append(Running(name, problem, batches))
        except ImportError as error:
            print(f"{name}: not installed ({error})")
    losses = {one.name: one.loss for one in running if not one.name.startswith("deterministic")}
    middle = statistics.median(losses.values() or [0.0])
    for name, loss in losses.items():
        if abs(loss - middle) > 0.05 * middle:
            raise ValueError(f"{name}: expected a first loss near {middle:.6g}, as the others have, got {loss:.6g}")
    for _ in range(args.blocks):
        for program in random.sample(running, len(running)):
            program.block()
    rows = [{"problem": str(problem), **problem.sizes(), "program": one.name, **one.result()} for one in running]
    medians = {row["program"]: row["ms"] for row in rows}
    for row in rows:
        row |= {column: row["ms"] / medians[b] if medians.get(b) else None for column, b in BASELINES.items()}
        row |= _machine.floor(problem.build(), batches[0], lrt=not row["program"].startswith("deterministic"))
        if args.fresh_cache:
            row |= first_steps_alone(row["program"], problem, args)
    return rows


def first_steps_alone(program: str, problem: Problem, args: argparse.Namespace) -> dict[str, float]:
    """Set-up and first steps in a new process: with an empty cache of Inductor, then with the one it left."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--widths", "--depths", "--batches", *["--bf16"] * args.bf16]
        command += [f"--{name}={getattr(problem, name)}" for name in ("net", "width", "depth", "batch", "device")]
        command += [f"--programs={program}", f"--threads={args.threads}", "--blocks=0", f"--out={folder}"]
        for cache in ("cold_s", "warm_s"):
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            with open(f"{folder}/benchmark.csv") as file:
                result[cache] = float(next(csv.DictReader(file))["first_s"])
    return result


def memory_over_steps(problem: Problem, steps: int) -> None:
    """Resident memory of CompiledSVI at ten points of a run."""
    program = Running("compiled-svi", problem, problem.batches())
    print(f"\n{problem}: compiled-svi\n{'steps':>10}{'resident MB':>14}")
    for i in range(1, 11):
        program.take(steps // 10)
        print(f"{i * (steps // 10):>10,}{resident() / 1e6:>14.2f}", flush=True)


def main(args: argparse.Namespace) -> None:
    if args.device == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        _machine.use_threads(args.threads)
    else:
        torch.set_num_threads(args.threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    pyro.enable_validation(False)
    random.seed(args.seed)  # the order in which programs take their turns
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} threads"
    print(f"PyTorch {torch.__version__}, {args.device} ({name}), {dtype}: ", end="")
    print(f"{_machine.gemm_rate(args.device, dtype) / 1e9:,.0f} GFLOP/s in a matrix product, ", end="")
    print(f"{_machine.copy_rate(2**29, args.device) / 1e9:,.1f} GB/s in a copy of 256 MB", flush=True)
    rows: list[_report.Row] = []
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        for problem in problems(args):
            if args.memory_steps:
                memory_over_steps(problem, args.memory_steps)
                continue
            if args.waiting:
                print(f"\n{problem}\n{_waiting.table(problem, args.waiting, args.threads)}", flush=True)
                continue
            rows += measure(problem, args)
            print(f"\n{problem}")
            print(_report.table([one for one in rows if one["problem"] == str(problem)]), flush=True)
    if rows:
        _report.write(rows, {name: getattr(args, name) for name in ("width", "depth", "batch")}, Path(args.out))


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "benchmark", data=False, bar=False)
    parser.add_argument("--net", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--widths", nargs="*", type=int, default=[256, 512, 1024, 2048, 4096], help="of mlp")
    parser.add_argument("--depths", nargs="*", type=int, default=[2, 4, 8, 16], help="hidden layers of mlp")
    parser.add_argument("--batches", nargs="*", type=int, default=[32, 128, 512, 2048, 4096], help="of mlp")
    parser.add_argument("--width", type=int, default=512, help="where it is not the one that varies")
    parser.add_argument("--depth", type=int, default=2, help="likewise")
    parser.add_argument("--batch", type=int, default=100, help="likewise, and that of the LeNets")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, help="default: all that run on the device")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: CUDA events beside the clock")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--bf16", action="store_true", help="PyTorch programs under autocast")
    parser.add_argument("--fresh-cache", action="store_true", help="first steps in new processes, cache cold and warm")
    parser.add_argument("--memory-steps", type=int, help="print the memory of CompiledSVI over so many steps instead")
    parser.add_argument("--waiting", type=float, help="print steps and longest step of so many seconds instead")
    quick = {"net": ["lenet-300-100"], "widths": [], "depths": [], "batches": [], "blocks": 3}
    args = _options.parse(parser, argv, **quick)
    missing = {"lrt-cuda-graph"} if args.device == "cpu" else set()
    missing |= {"numpyro", "lrt-jax"} if args.bf16 else set()
    args.programs = args.programs or [name for name in PROGRAMS if name not in missing]
    if found := missing & set(args.programs):
        parser.error(f"--programs {' '.join(sorted(found))}: expected programs that run with this --device and --bf16")
    return args


if __name__ == "__main__":
    main(arguments())
