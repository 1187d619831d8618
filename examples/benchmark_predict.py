"""Time of a prediction: 100 draws of LeNet-300-100, by hand, by Pyro, and by pyro_vd.

    python examples/benchmark_predict.py
    python examples/benchmark_predict.py --batches 1 --draws 1000 --threads 1
    python examples/benchmark_predict.py --numpyro                  # NumPyro's Predictive against pyro_vd.numpyro
    python examples/benchmark_predict.py --moments --data-dir DIR   # one pass of moments against draws

All programs predict the same random images in turn, several rounds. Printed are the median in milliseconds, the fastest
round, and the ratio of the medians to the first program: the loop by hand, which draws every weight, runs the net and
adds up class probabilities. --cpu-time counts the time of the processor instead of the clock's, for a machine that is
busy. With --numpyro the first program is that of NumPyro, which compiles in every call; XLA takes all cores.
result.json in --out has the time of every round.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _moments
import _options
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import Predictive
from torch import Tensor, nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD


class Problem:
    """A net with a posterior for every weight, and the programs that predict with it."""

    def __init__(self, draws: int):
        self.draws = draws
        self.net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        self.bnn = vd.BayesianModule(self.net, vd.ImproperLogUniform())
        self.guide = AutoSparseVD(self.bnn, init_log_sigma2=-5.0)
        self.guide(torch.ones(1, 784))
        self.posteriors = list(self.guide.posteriors().values())

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.bnn(x)
        with vd.data_plate(60_000, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    @torch.no_grad()
    def by_hand(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), 10)
        layers = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        for _ in range(self.draws):
            hidden = x
            for layer, q in zip(layers, self.posteriors, strict=True):
                weight = q.loc + (0.5 * q.log_sigma2).exp() * torch.randn_like(q.loc)
                hidden = F.linear(hidden, weight, layer.bias)
                hidden = hidden.relu() if layer is not layers[-1] else hidden
            total += hidden.softmax(-1)
        return total / self.draws

    def by_pyro(self, x: Tensor) -> Tensor:
        return Predictive(self.model, guide=self.guide, num_samples=self.draws, return_sites=("y",))(x)["y"]

    def draws_of_values(self, x: Tensor) -> Tensor:
        return vd.posterior_predictive(self.model, self.guide, x, num_samples=self.draws)["y"]

    def distribution(self, x: Tensor) -> Tensor:
        return vd.predictive_distribution(self.model, self.guide, x, num_samples=self.draws)["y"].probs

    def distribution_local(self, x: Tensor) -> Tensor:
        local = vd.predictive_distribution(self.model, self.guide, x, num_samples=self.draws, mode="local")
        return local["y"].probs


def measure(programs: dict[str, Callable], x: Any, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of every program in every round, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            start = clock()
            program(x)
            if number:
                times[name].append(1e3 * (clock() - start))
    return times


def pyro_programs(draws: int) -> dict[str, Callable]:
    problem = Problem(draws)
    return {
        "loop by hand": problem.by_hand,
        "pyro.infer.Predictive": problem.by_pyro,
        "posterior_predictive": problem.draws_of_values,
        "predictive_distribution": problem.distribution,
        'the same, mode="local"': problem.distribution_local,
    }


def main() -> None:
    parser = _options.parser(__doc__, "benchmark_predict", data=False, bar=False)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--numpyro", action="store_true", help="the programs of NumPyro, instead")
    quick = _moments.add_options(parser)
    args = _options.parse(parser, None, batches=[1, 10], draws=10, rounds=2, **quick)
    torch.set_num_threads(args.threads)
    if args.moments:
        pyro.enable_validation(False)
        _write(Path(args.out), {"arguments": vars(args), **_moments.main(args)})
        return
    pyro.set_rng_seed(args.seed)
    if args.numpyro:
        import _mirror_predict  # needs jax, numpyro and flax

        programs, array = _mirror_predict.mirror_programs(args.draws), _mirror_predict.array
    else:
        programs, array = pyro_programs(args.draws), Tensor.clone
    first, *_ = programs
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(f"{'program':26}{'batch':>6}{'median ms':>11}{'fastest':>9}{'/ first':>11}")
    rows = []
    for batch in args.batches:
        times = measure(programs, array(torch.randn(batch, 784)), args.rounds, clock)
        of_first = statistics.median(times[first])
        for name, values in times.items():
            median = statistics.median(values)
            print(f"{name:26}{batch:6}{median:11.1f}{min(values):9.1f}{median / of_first:11.2f}", flush=True)
            rows.append({"program": name, "batch": batch, "ms": values, "over_first": median / of_first})
    _write(Path(args.out), {"arguments": vars(args), "rows": rows})


def _write(out: Path, result: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"result.json is in {out}/")


if __name__ == "__main__":
    main()
