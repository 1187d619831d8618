"""Test error of every noise family over the width of the network.

    python examples/dropout_families.py                                        # digits
    python examples/dropout_families.py --dataset mnist --data-dir DIR --epochs 15

Same data, net and model for all; a family is a guide and a weight of the KL. Prints mean and standard error
over seeds and draws them (Kingma et al. 2015, figure 1: with few units binary and Gaussian dropout underfit).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import _data
import _figures
import _options
import numpy as np
import pyro
import torch
from _seeds import mean_and_error, over_seeds
from _training import classifier, error, mlp, train
from pyro.infer.autoguide.guides import AutoGuide
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import (
    AutoBernoulliDropout,
    AutoGaussianDropout,
    AutoSparseVD,
    AutoVariationalDropout,
    mixed_guide,
)
from pyro_vd.training import linear_warm_up

FIRST, OTHERS = "net.0.weight", lambda site: site != "net.0.weight"
INPUT_RATE, HIDDEN_RATE = 0.2, 0.5


def by_layer(make: Callable) -> Callable:
    """A guide with ``INPUT_RATE`` on the first layer and ``HIDDEN_RATE`` above."""

    def guide(model: Callable) -> AutoGuide:
        return mixed_guide(model, make(model, INPUT_RATE, FIRST), make(model, HIDDEN_RATE, OTHERS))

    return guide


def learned(correlated: bool) -> Callable:
    """Kingma's variational dropout, its rates starting where the fixed ones are."""

    def part(model: Callable, rate: float, where):
        log_alpha = math.log(rate / (1 - rate))
        return AutoVariationalDropout(model, correlated=correlated, init_log_alpha=log_alpha, where=where)

    return by_layer(part)


FAMILIES: dict[str, tuple[Callable, float]] = {  # guide, weight of the KL
    "none": (lambda model: AutoBernoulliDropout(model, 0.0), 1.0),
    "binary": (by_layer(lambda model, rate, where: AutoBernoulliDropout(model, rate, where=where)), 1.0),
    "Gaussian": (
        by_layer(lambda model, rate, where: AutoGaussianDropout(model, rate, correlated=True, where=where)),
        1.0,
    ),
    "A": (learned(correlated=False), 1.0),
    "A2": (learned(correlated=False), 1 / 3),
    "B": (learned(correlated=True), 1.0),
    "sparse": (AutoSparseVD, 1.0),
}


def test_error(family: str, width: int, seed: int, data: _data.Data, epochs: int) -> float:
    """Error in percent of the mean network after training three hidden layers of ``width`` units."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    make, kl_weight = FAMILIES[family]
    bnn = vd.BayesianModule(mlp([data.x_train.shape[1], width, width, width, 10]), vd.ImproperLogUniform())
    model = classifier(bnn, len(data.x_train))
    guide = make(model)
    ramp = linear_warm_up(0.0, 0.5, num_steps=1)
    train(model, guide, data, epochs=epochs, lr=2e-3, kl_weight=lambda done: kl_weight * ramp(done))
    return error(vd.prune(bnn, guide, math.inf), data.x_test, data.y_test)


def main(args: argparse.Namespace) -> None:
    pyro.enable_validation(False)
    data = _data.load(args.dataset, args.data_dir)
    seeds = range(args.seed, args.seed + args.seeds)
    runs = [(f, width, seed) for f in args.families for width in args.widths for seed in seeds]
    errors: dict[str, dict[int, list[float]]] = {
        family: {width: [] for width in args.widths} for family in args.families
    }
    bar = tqdm(runs, unit="run", disable=args.quiet)
    for family, width, seed in bar:
        errors[family][width].append(test_error(family, width, seed, data, args.epochs))
        bar.set_postfix_str(f"{family}, {width} units: {errors[family][width][-1]:.2f} %")

    print(f"test error (%) of 3 hidden layers on {args.dataset}: {over_seeds(args.seeds)}")
    print(f"{'family':<10}" + "".join(f"{f'3 x {width}':>16}" for width in args.widths))
    for family, by_width in errors.items():
        cells = (mean_and_error(torch.tensor(e)) for e in by_width.values())
        print(f"{family:<10}" + "".join(f"{cell:>16}" for cell in cells))

    out = Path(args.out)
    means = {family: [float(np.mean(e)) for e in by_width.values()] for family, by_width in errors.items()}
    bars = {family: [standard_error(e) for e in by_width.values()] for family, by_width in errors.items()}
    _figures.error_against_width(args.widths, means, bars if args.seeds > 1 else None, out / "families.png")
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), "error": errors}, indent=1))
    print(f"families.png and result.json are in {out}/")


def standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "dropout_families", seeds=3)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--widths", nargs="+", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--epochs", type=int, default=60)
    return _options.parse(parser, argv, epochs=3, seeds=1, widths=[25, 50])


if __name__ == "__main__":
    main(arguments())
