"""One pass of moments against draws of the weights: on MNIST after a short training, and over the depth of a net."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import Any

import _data
import _training
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

WIDTH = 50
SHARE = 0.05  # variance of a weight in the posterior over that of the weights of a layer


def add_options(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options of --moments; returns their values under --quick."""
    parser.add_argument("--moments", action="store_true", help="one pass of moments against draws, instead")
    parser.add_argument("--data-dir", default="data", help="of --moments: folder of the IDX files of MNIST")
    parser.add_argument("--epochs", type=int, default=3, help="of --moments: of training")
    parser.add_argument("--images", type=int, default=2000, help="of --moments: test images that are judged")
    parser.add_argument("--reference", type=int, default=2000, help="of --moments: draws that it is compared to")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 5, 10, 15, 20], help="of --moments")
    parser.add_argument("--only-depths", action="store_true", help="of --moments: without MNIST")
    return {"epochs": 1, "images": 200, "reference": 100, "depths": [1, 3]}


def on_mnist(args: argparse.Namespace) -> list[dict[str, Any]]:
    """NLL, error, total variation to 2,000 draws, and ms a call, of a posterior of LeNet-300-100."""
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    data = _data.load("mnist", args.data_dir).standardized()
    bnn = vd.BayesianModule(_training.mlp([784, 300, 100, 10]), dist.Normal(0.0, 0.1))
    model = _training.classifier(bnn, len(data.x_train))
    guide = AutoMeanField(model, init_log_sigma2=-7.0)
    _training.train(model, guide, data, epochs=args.epochs, lr=2e-3, batch=200)
    x, y = data.x_test[: args.images], data.y_test[: args.images]

    def probabilities(mode: str, number: int, x: Tensor = x) -> Tensor:
        return vd.predictive_distribution(model, guide, x, num_samples=number, mode=mode)["y"].probs

    draws = args.reference // 10  # at a time
    reference = torch.stack([probabilities("weights", draws) for _ in range(10)]).mean(0)
    programs = [("mean network", "mean", 1), ("moments", "moments", 100)]
    programs += [(f"{number} draws", "weights", number) for number in (5, 20, 100)]
    rows = []
    for name, mode, number in [*programs, (f"{10 * draws} draws", "", 0)]:
        probs = probabilities(mode, number) if mode else reference
        times: list[float] = []
        for _ in range(args.rounds + 1 if mode else 0):
            start = time.perf_counter()
            probabilities(mode, number, x[:1000])
            times.append(1e3 * (time.perf_counter() - start))
        rows.append({
            "program": name,
            "NLL": nn.functional.nll_loss(probs.log(), y).item(),
            "error": 100 * (probs.argmax(-1) != y).float().mean().item(),
            "total variation": 0.5 * (probs - reference).abs().sum(-1).mean().item(),
            "ms": statistics.median(times[1:]) if times else math.nan,
        })  # fmt: skip
    return rows


def over_depth(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The standard deviation of the outputs over that of 2,000 draws, by depth; mean +- standard error of 3 nets."""
    rows = []
    for name, activation, gain in (("ReLU", nn.ReLU, 2.0), ("tanh", nn.Tanh, 1.0)):
        for depth in args.depths:
            ratios = [_ratio(depth, activation, gain, seed, args.reference) for seed in range(3)]
            rows.append({"activation": name, "depth": depth, "ratio": statistics.mean(ratios),
                         "error": statistics.stdev(ratios) / math.sqrt(3)})  # fmt: skip
    return rows


@torch.no_grad()
def _ratio(depth: int, activation: type[nn.Module], gain: float, seed: int, reference: int) -> float:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH), activation()]
        nn.init.normal_(layers[-2].weight, std=math.sqrt(gain / WIDTH))  # type: ignore[arg-type]
        nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
    bnn = vd.BayesianModule(nn.Sequential(*layers[:-1]), dist.Normal(0.0, 1.0))

    def model(x: Tensor) -> None:
        pyro.sample("y", dist.Normal(bnn(x), 1.0).to_event(1))

    guide, x = AutoMeanField(bnn, init_log_sigma2=math.log(SHARE * gain / WIDTH)), torch.randn(20, WIDTH)
    guide(x)
    moments = vd.predictive_distribution(model, guide, x, mode="moments")["y"].epistemic_variance
    draws = vd.predictive_distribution(model, guide, x, num_samples=reference)["y"].epistemic_variance
    return (moments / draws).sqrt().mean().item()


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print both tables."""
    depths = over_depth(args)
    print(
        f"standard deviation of the output by moments over that of draws\n{'activation':<12}{'depth':>6}{'ratio':>16}"
    )
    for row in depths:
        print(f"{row['activation']:<12}{row['depth']:>6}{row['ratio']:>9.3f} +- {row['error']:.3f}")
    if args.only_depths:
        return {"depths": depths}
    rows = on_mnist(args)
    print(f"{'MNIST':<16}{'NLL':>9}{'error %':>9}{'total variation':>17}{'ms for 1,000':>14}")
    for row in rows:
        ms = "" if math.isnan(row["ms"]) else f"{row['ms']:.1f}"
        print(f"{row['program']:<16}{row['NLL']:>9.4f}{row['error']:>9.2f}{row['total variation']:>17.4f}{ms:>14}")
    return {"depths": depths, "mnist": [{k: v for k, v in row.items() if v == v} for row in rows]}
