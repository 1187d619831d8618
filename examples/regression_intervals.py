"""Intervals of a regression with a gap in its data: how often they hold what they claim, beside the gap and in it.

    python examples/regression_intervals.py            # 5 seeds, a few minutes
    python examples/regression_intervals.py --quick    # one seed, few steps

The curve is ``sin(2 x) + x / 2`` with noise of standard deviation 0.2, seen at 200 places in (-3, -1) and (1, 3). Every
method trains the same net: 30 bumps along x, a linear layer on them, and one parameter for the noise. Held-out data lie
between the training data and in the gap (-1, 1). One table has the share of them in the 90 % interval, its mean width,
the NLL (nats) and the epistemic part of the standard deviation: mean over the seeds +- its standard error. A picture in
--out shows the bands of the last seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _figures
import _options
import pyro
import pyro.distributions as dist
import torch
from _seeds import over_seeds, table
from torch import Tensor, nn
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import AutoBernoulliDropout, AutoLowRank, AutoMeanField, AutoSparseVD

FAMILIES: dict[str, tuple[Any, Callable]] = {  # prior, guide
    "binary dropout": (vd.ImproperLogUniform(), lambda model: AutoBernoulliDropout(model, 0.1)),
    "sparse VD": (vd.ImproperLogUniform(), AutoSparseVD),
    "mean field": (dist.Normal(0.0, 0.5), lambda model: AutoMeanField(model, init_log_sigma2=-5.0)),
    "low rank": (dist.Normal(0.0, 0.5), lambda model: AutoLowRank(model, rank=5, init_log_sigma2=-5.0)),
}
MEMBERS, LEVEL, NOISE = 5, 0.9, 0.2
Predict = Callable[[Tensor], vd.Predictive]


def places(number: int, gap: bool, generator: torch.Generator) -> Tensor:
    """Shape (number, 1)."""
    x = torch.rand(number, 1, generator=generator)
    side = 2 * torch.randint(2, (number, 1), generator=generator) - 1
    return 2 * x - 1 if gap else side * (1 + 2 * x)


def observed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shape (number,)."""
    noise = torch.randn(len(x), generator=generator)
    return (2 * x[:, 0]).sin() + x[:, 0] / 2 + NOISE * noise


class Bumps(nn.Module):
    """x, shape (examples, 1), to mean and log standard deviation, shape (examples, 2)."""

    centres: Tensor

    def __init__(self, number: int):
        super().__init__()
        self.register_buffer("centres", torch.linspace(-3.5, 3.5, number))
        self.linear = nn.Linear(number, 1)
        self.log_noise = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.linear((-((x - self.centres) ** 2) / (2 * 0.4**2)).exp())
        return torch.cat([mean, self.log_noise.expand_as(mean)], -1)


def likelihood(output: Tensor) -> dist.Normal:
    return dist.Normal(output[..., 0], output[..., 1].exp())


def adam(parameters: Any, loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(parameters, lr)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        decay.step()


def plain(x: Tensor, y: Tensor, args: argparse.Namespace) -> nn.Module:
    net = Bumps(args.bumps)
    adam(net.parameters(), lambda: -likelihood(net(x)).log_prob(y).mean(), args.steps, args.lr)
    return net


def variational(family: str, x: Tensor, y: Tensor, args: argparse.Namespace) -> Predict:
    prior, make = FAMILIES[family]
    bnn = vd.BayesianModule(Bumps(args.bumps), prior)

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        predicted = likelihood(bnn(x))
        with vd.data_plate(args.examples, len(x)):
            return pyro.sample("y", predicted, obs=y)

    guide = make(model)
    loss = vd.TraceVD_ELBO()(model, guide)
    adam(loss.parameters(), lambda: loss(x, y) / len(x), args.steps, args.lr)
    return lambda x: vd.predictive_distribution(model, guide, x, num_samples=args.draws)["y"]


def methods(x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, Predict]:
    nets = [plain(x, y, args) for _ in range(MEMBERS)]

    def of(members: list[nn.Module]) -> Predict:
        return torch.no_grad()(lambda x: vd.Predictive(likelihood(torch.stack([net(x) for net in members])), "y"))

    found = {"deterministic": of(nets[:1]), f"ensemble of {MEMBERS}": of(nets)}
    return found | {family: variational(family, x, y, args) for family in FAMILIES}


def judged(prediction: vd.Predictive, y: Tensor) -> dict[str, float]:
    return {
        "coverage": 100 * vd.metrics.interval_coverage(prediction, y, LEVEL),
        "width": vd.metrics.interval_width(prediction, LEVEL),
        "NLL": vd.metrics.nll(prediction, y),
        "epistemic": prediction.epistemic_variance.sqrt().mean().item(),
    }


def run(args: argparse.Namespace, seed: int) -> tuple[dict[str, dict[str, float]], dict[str, Predict], tuple]:
    torch.manual_seed(seed)
    pyro.clear_param_store()
    generator = torch.Generator().manual_seed(seed)
    x = places(args.examples, False, generator)
    y = observed(x, generator)
    held = {where: places(1000, where == "in the gap", generator) for where in ("beside it", "in the gap")}
    answers = {where: observed(inputs, generator) for where, inputs in held.items()}
    found = methods(x, y, args)
    rows = {
        name: {f"{column} {where}": value for where, inputs in held.items()
               for column, value in judged(predict(inputs), answers[where]).items()}
        for name, predict in found.items()
    }  # fmt: skip
    return rows, found, (x, y)


def main(args: argparse.Namespace) -> None:
    pyro.enable_validation(False)
    runs, found, data = [], {}, ()
    for seed in tqdm(range(args.seed, args.seed + args.seeds), unit="seed", disable=args.quiet):
        rows, found, data = run(args, seed)
        runs.append(rows)
    print(f"90 % intervals (coverage in %), {over_seeds(len(runs))}\n{table(runs)}")
    inputs = torch.linspace(-3.5, 3.5, 200)[:, None]
    bands = {name: predict(inputs) for name, predict in found.items()}
    _figures.regression_bands(bands, inputs, data, Path(args.out) / "intervals.png")
    (Path(args.out) / "result.json").write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1))
    print(f"intervals.png and result.json are in {args.out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "regression_intervals", seeds=5, data=False)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--bumps", type=int, default=30)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--draws", type=int, default=100)
    return _options.parse(parser, argv, steps=30, seeds=1, draws=10)


if __name__ == "__main__":
    main(arguments())
