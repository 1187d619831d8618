"""Sparse variational dropout on Pyro and on NumPyro: same data, net, initial values, recipe and seeds.

    python examples/compare_backends.py                    # digits, 5 seeds a side
    python examples/compare_backends.py --seeds 1 --epochs 20

Each run is a process of its own. Reports, per backend, error after pruning, sparsity, held-out negative log-likelihood,
time to a target error, peak memory; how far the loss curves are apart; and, as benchmark.py measures it, the time of
a training step of LeNet-300-100, beside that of one written by hand in JAX. Writes the curves and the numbers to --out.
Needs the other backend, too: pip install -e ".[examples,numpyro]" flax.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from tqdm import tqdm

from pyro_vd.training import linear_warm_up

BACKENDS = ("pyro", "numpyro")
STEPS = ["vd-loss", "compiled-svi", "numpyro", "lrt-jax"]
THRESHOLD = 3.0
COMPARED = ("error", "sparsity", "NLL")
MEASURES = {"error": "%", "sparsity": "%", "NLL": "nats", "seconds to target": "s", "peak memory": "MB"}


def run(backend: str, args: argparse.Namespace, seed: int) -> dict:
    """Train one net on one backend; its curves and what it reached."""
    import _data
    import _training
    import pyro
    import torch
    from sparse_mlp import RECIPES

    import pyro_vd as vd
    from pyro_vd.guides import AutoSparseVD

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    recipe = RECIPES["fast"][args.dataset]
    data = _data.load(args.dataset, args.data_dir)
    data = data.standardized() if recipe.standardize else data
    net = _training.mlp([data.x_train.shape[1], *args.hidden, 10], std=recipe.std)
    bnn = vd.BayesianModule(net, prior=vd.ImproperLogUniform())
    model = _training.classifier(bnn, len(data.x_train))
    guide = AutoSparseVD(model)
    epochs = args.epochs or recipe.epochs
    curve: list[tuple[float, float, float]] = []
    clock = [0.0, time.perf_counter()]

    def progress(epoch: int, elbo: vd.TraceVD_ELBO) -> None:
        clock[0] += time.perf_counter() - clock[1]  # training alone, compilation included
        with torch.no_grad():
            loss = elbo.terms(model, guide, data.x_train[:1000], data.y_train[:1000]).negative_elbo.item()
        error = _training.error(vd.prune(bnn, guide, THRESHOLD), data.x_test, data.y_test)
        curve.append((clock[0], loss / len(data.x_train), error))
        if epoch + 1 >= recipe.zero_from * epochs:
            guide.zero_above = recipe.zero_above
        clock[1] = time.perf_counter()

    options: dict = {"epochs": epochs, "lr": recipe.lr, "lr_ratio": recipe.lr_ratio, "progress": progress}
    options["kl_weight"] = linear_warm_up(*recipe.warm_up, num_steps=1)
    program = None
    if backend == "numpyro":
        import _numpyro_training

        program = _numpyro_training.train(net, guide, data, seed=seed, **options)
    else:
        _training.train(model, guide, data, compiled=not args.eager, **options)
    seconds, losses, errors = zip(*curve, strict=True)
    reached = [at for at, error in zip(seconds, errors, strict=True) if error <= args.target]
    return {
        "loss": losses,
        "seconds": seconds,
        "error": errors[-1],
        "sparsity": 100 * vd.sparsity_report(guide, THRESHOLD).sparsity,
        "NLL": nll(bnn, guide, data) if program is None else _numpyro_training.nll(program, data, seed),  # type: ignore
        "seconds to target": reached[0] if reached else None,
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def nll(bnn, guide, data) -> float:
    """Held-out negative log-likelihood of 20 posterior samples, nats per example."""
    import _training
    import torch

    return torch.nn.functional.nll_loss(_training.log_predictive(bnn, guide, data.x_test), data.y_test).item()


def step_times(programs: list[str], blocks: int) -> tuple[list[dict], str]:
    """Rows of ``benchmark.py`` for a step of LeNet-300-100, batch 100, on two threads, and their table."""
    import _machine
    import _report
    import benchmark
    import pyro
    from _programs import Problem

    _machine.use_threads(2)
    pyro.enable_validation(False)
    problem = Problem("lenet-300-100", 0, 0, batch=100)
    rows = benchmark.measure(problem, argparse.Namespace(programs=programs, blocks=blocks, fresh_cache=False))
    return rows, _report.table(rows)


def table(runs: dict[str, list[dict]]) -> str:
    """Means over seeds and their standard errors, and how many of these two backends are apart."""
    lines = [f"{'':<20}" + "".join(f"{backend:>24}" for backend in BACKENDS) + f"{'standard errors apart':>24}"]
    for measure, unit in MEASURES.items():
        means, errors, cells = [], [], ""
        for backend in BACKENDS:
            values = [r[measure] for r in runs[backend] if r[measure] is not None]
            means.append(mean(values or [0.0]))
            errors.append(stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)
            error = f" +- {errors[-1]:.2g}" if len(values) > 1 else ""  # one seed has none
            cells += f"{f'{means[-1]:.4g}{error} {unit}' if values else 'not reached':>24}"
        apart = f"{abs(means[0] - means[1]) / math.hypot(*errors):.2f}" if any(errors) else "-"
        lines.append(f"{measure:<20}{cells}" + (f"{apart:>24}" if measure in COMPARED else ""))
    return "\n".join(lines)


def main(args: argparse.Namespace) -> dict:
    import _figures
    import _options

    _options.require(numpyro='-e ".[numpyro]"', flax="flax")
    runs: dict[str, list[dict]] = {backend: [] for backend in BACKENDS}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
        steps, step_table = alone.submit(step_times, args.programs, args.blocks).result()
        for seed in tqdm(range(args.seed, args.seed + args.seeds), unit="seed", disable=args.quiet):
            for backend in BACKENDS:
                runs[backend].append(alone.submit(run, backend, args, seed).result())
    print(table(runs))
    curves = {backend: np.mean([r["loss"] for r in runs[backend]], 0) for backend in BACKENDS}
    apart = np.abs(curves["numpyro"] / curves["pyro"] - 1)
    print(f"mean loss curves: {100 * apart.mean():.2f} % apart on average, {100 * apart[-1]:.2f} % at the end")
    print(f"a training step, batch 100, two threads:\n{step_table}")
    out = Path(args.out)
    _figures.loss_of_backends({b: [r["loss"] for r in runs[b]] for b in BACKENDS}, out / "backends.png")
    result = {"arguments": vars(args), "runs": runs, "steps": steps}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"backends.png and result.json are in {out}/")
    return result


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    import _options

    parser = _options.parser(__doc__, "compare_backends", seeds=5)
    parser.add_argument("--hidden", type=int, nargs="*", default=[300, 100])
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--target", type=float, default=4.0, help="error after pruning, in percent")
    parser.add_argument("--eager", action="store_true", help="no compiled steps on Pyro")
    parser.add_argument("--programs", nargs="+", default=STEPS, help="of benchmark.py, whose steps are timed")
    parser.add_argument("--blocks", type=int, default=20, help="of such steps")
    return _options.parse(parser, argv, epochs=5, seeds=1, blocks=2, eager=True, programs=["numpyro", "lrt-jax"])


if __name__ == "__main__":
    main(arguments())
