"""Variance of the minibatch gradient under each estimator, and what it costs.

    python examples/gradient_variance.py                               # digits
    python examples/gradient_variance.py --dataset mnist --data-dir DIR

Prints the table of Kingma et al. 2015 (mean variance of the gradient of the means, first and last layer,
early and late in training), the time of a training step as ratios, and the slopes of the variance against
the batch size, which it also draws: under "shared" it stops falling, under the others it goes on as 1/M.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import _data
import _figures
import _options
import numpy as np
import pyro
import torch
from _training import classifier, mlp, train
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import AutoVariationalDropout

ESTIMATORS = ("none", "local", "flipout", "per_example", "shared")


def build(data: _data.Data, hidden: list[int], init_log_alpha: float = -1.0):
    """Model and guide: type A variational dropout, whose noise is independent over weights."""
    pyro.clear_param_store()
    bnn = vd.BayesianModule(mlp([data.x_train.shape[1], *hidden, 10]), vd.ImproperLogUniform())
    model = classifier(bnn, len(data.x_train))
    return model, AutoVariationalDropout(model, granularity="layer", init_log_alpha=init_log_alpha)


def variance(model, guide, data: _data.Data, estimator: str, draws: int, batch: int) -> dict[str, float]:
    """Mean variance of the gradient of the means of each site, over noise and minibatches."""
    chosen: Any = "local" if estimator == "none" else estimator
    elbo = vd.TraceVD_ELBO(chosen)
    guide = vd.posterior_mean(guide) if estimator == "none" else guide
    measured = vd.gradient_variance(model, guide, elbo, data.x_train, data.y_train, num_draws=draws, batch_size=batch)
    means = {name: value for name, value in measured.per_parameter().items() if ".locs." in name}
    return {name.partition(".locs.")[2]: value for name, value in means.items()}


def table(args: argparse.Namespace, data: _data.Data) -> dict[str, dict[str, dict[str, float]]]:
    """``{stage: {estimator: {site: variance}}}`` on LeNet-300-100, after a tenth of training and after all of it."""
    model, guide = build(data, [300, 100])
    stages = {"early": max(1, args.epochs // 10), "late": args.epochs}
    result: dict[str, dict[str, dict[str, float]]] = {}

    def measure(epoch: int, _: vd.TraceVD_ELBO) -> None:
        for stage, at in stages.items():
            if epoch + 1 == at:
                rows = tqdm(ESTIMATORS, desc=f"{stage}: epoch {at}", disable=args.quiet)
                result[stage] = {one: variance(model, guide, data, one, args.draws, args.batch) for one in rows}

    train(model, guide, data, epochs=args.epochs, lr=1e-3, progress=measure)
    return result


def step_times(args: argparse.Namespace, data: _data.Data, steps: int = 20, rounds: int = 5) -> dict[str, float]:
    """Seconds a training step takes at batch 100 on LeNet-300-100; the best of interleaved rounds."""
    model, guide = build(data, [300, 100])
    x, y = data.x_train[:100], data.y_train[:100]
    guide(x, y)
    best: dict[str, float] = dict.fromkeys(ESTIMATORS, float("inf"))
    for _ in range(rounds):
        for estimator in ESTIMATORS:
            chosen: Any = "local" if estimator == "none" else estimator
            elbo = vd.TraceVD_ELBO(chosen)
            loss = elbo(model, vd.posterior_mean(guide) if estimator == "none" else guide)
            parameters = [*loss.parameters(), *guide.parameters()]
            optimizer = torch.optim.Adam(dict.fromkeys(parameters), lr=0.0, fused=True)
            number = max(1, steps // 10) if estimator == "per_example" else steps
            start = 0.0
            for i in range(number + 1):
                if i == 1:  # the first is a warm-up
                    start = time.perf_counter()
                optimizer.zero_grad()
                loss(x, y).backward()
                optimizer.step()
                if data.x_train.is_cuda:
                    torch.cuda.synchronize()
            best[estimator] = min(best[estimator], (time.perf_counter() - start) / number)
    return best


def against_batch_size(args: argparse.Namespace, data: _data.Data) -> tuple[list[int], dict[str, list[float]]]:
    """Variance of the first layer's gradient of a small net for batches of 1 to 1000 examples."""
    sizes = [m for m in (1, 3, 10, 30, 100, 300, 1000) if m <= args.largest_batch]
    model, guide = build(data, [50])
    train(model, guide, data, epochs=max(1, args.epochs // 10), lr=1e-3)
    bars = tqdm([e for e in ESTIMATORS if e != "none"], desc="batch sizes", disable=args.quiet)
    curves = {}
    for estimator in bars:
        curves[estimator] = [variance(model, guide, data, estimator, args.draws, m)["net.0.weight"] for m in sizes]
    return sizes, curves


def slope(sizes: list[int], values: list[float]) -> float:
    """Slope of log variance against log batch size."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    pyro.enable_validation(False)
    data = _data.load(args.dataset, args.data_dir)
    stages = table(args, data)
    times = step_times(args, data)
    sizes, curves = against_batch_size(args, data)

    columns = [(stage, site) for stage in stages for site in ("net.0.weight", "net.4.weight")]
    print(f"mean variance of the gradient of the means, batch {args.batch}, {args.draws} draws; time of a step / local")
    print(f"{'estimator':<12}" + "".join(f"{stage + ' ' + site:>20}" for stage, site in columns) + f"{'time':>8}")
    for one in ESTIMATORS:
        cells = "".join(f"{stages[stage][one][site]:>20.4g}" for stage, site in columns)
        print(f"{one:<12}{cells}{times[one] / times['local']:>7.1f}x")
    print("\nslope of log variance against log batch size")
    half = len(sizes) // 2
    slopes = {
        one: (slope(sizes[: half + 1], c[: half + 1]), slope(sizes[half:], c[half:])) for one, c in curves.items()
    }
    print(f"{'estimator':<12}{f'M = 1..{sizes[half]}':>14}{f'M = {sizes[half]}..{sizes[-1]}':>16}")
    for one, (low, high) in slopes.items():
        print(f"{one:<12}{low:>14.2f}{high:>16.2f}")

    out = Path(args.out)
    _figures.variance_against_batch_size(sizes, curves, out / "variance.png")
    result = {"arguments": vars(args), "variance": stages, "seconds_per_step": times, "batch_sizes": sizes}
    result |= {"variance_by_batch_size": curves, "slopes": slopes}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"variance.png and result.json are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "gradient_variance")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=100, help="examples in a minibatch of the table")
    parser.add_argument("--draws", type=int, default=200, help="gradients per variance")
    parser.add_argument("--largest-batch", type=int, default=1000)
    return _options.parse(parser, argv, epochs=5, draws=20, largest_batch=100)


if __name__ == "__main__":
    main(arguments())
