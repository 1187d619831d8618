"""Fine-tuning a pretrained transformer: random LoRA adapters of peft whose ranks are pruned, beside plain LoRA.

    python examples/lora.py              # 3 seeds, a few minutes
    python examples/lora.py --dora       # DoRA adapters
    python examples/lora.py --quick      # one seed, a few steps

A small vision transformer is trained on the digits 0 to 4 of scikit-learn, frozen, and fine-tuned on a few examples of
each of 5 to 9. Random adapters, with type B noise on A and group sparsity over the ranks on B, stand beside plain LoRA
and LoRA with MC dropout; once with the bound itself (kl_weight 1), once with less. The table has error, NLL and
expected calibration error (15 bins) on the digits that nothing has seen, and the ranks that are kept; error, NLL and
ECE of random adapters and of MC dropout are those of --draws draws. The adapter without its pruned ranks is in
--out/adapter, and peft has loaded it. Needs the extra networks, too: pip install -e ".[examples,networks]".
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import _adapters
import _options
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from _adapters import Task
from _seeds import over_seeds
from torch import Tensor, nn
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import AutoGroupSparse, AutoVariationalDropout, mixed_guide

RATES = (0.1, 0.3)  # of MC dropout
KL_WEIGHTS = (1.0, 0.2)
BINS = 15


def scores(log_probs: Tensor, y: Tensor) -> dict[str, float]:
    """Error in percent, NLL in nats per example, expected calibration error in percent."""
    confidence, found = log_probs.exp().max(-1)
    right = (found == y).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS).index_add(0, bins, confidence - right).abs().sum() / len(y)
    nll = F.nll_loss(log_probs, y).item()
    return {"error": 100 * (1 - right.mean().item()), "NLL": nll, "ECE": 100 * gaps.item()}


def deterministic(base: nn.Module, rate: float, train: Task, test: Task, args: argparse.Namespace) -> dict[str, float]:
    """Plain LoRA; with a ``rate``, MC dropout: as many nets as draws at the end."""
    net = _adapters.adapted(base, args.rank, args.dora, rate)
    _adapters.fit_plain(net, train, args.steps, args.lr)
    with torch.no_grad():
        draws = torch.stack([net(test.x).logits.log_softmax(-1) for _ in range(args.draws if rate else 1)])
    ranks = torch.cat(list(_adapters.ranks_of(net).values()))
    return scores(draws.logsumexp(0) - math.log(len(draws)), test.y) | {
        "ranks": int(ranks.sum()), "bytes": _adapters.check_in_passing(base, net, test.x[:8])
    }  # fmt: skip


def random(
    base: nn.Module, kl_weight: float, train: Task, test: Task, args: argparse.Namespace
) -> tuple[dict[str, float], Any]:
    """Adapters that are random; the scores, and the net of their means without the ranks that are pruned."""
    bnn = vd.BayesianModule(_adapters.adapted(base, args.rank, args.dora), vd.ImproperLogUniform(), where="*lora_[AB]*")

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = bnn(x).logits
        with vd.data_plate(len(train.y), len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = mixed_guide(
        model,
        AutoVariationalDropout(model, correlated=True, init_log_alpha=-1.0, where="*lora_A*"),
        AutoGroupSparse(model, unit_dim=1, where="*lora_B*"),
    )
    # DoRA uses its adapters twice, once of them for a norm: one draw a step.
    elbo = vd.TraceVD_ELBO(shared_sites=[bnn.site(name) for name in bnn.weight_names] if args.dora else ())
    loss = elbo(model, guide)

    def warmed(index: Tensor, done: float) -> Tensor:
        elbo.kl_weight = kl_weight * min(1.0, 2 * done)
        return loss(train.x[index], train.y[index]) / len(train.y)

    _adapters.fit(warmed, loss, len(train.y), args.steps, args.lr)
    with torch.no_grad():
        forecast = vd.predictive_distribution(model, guide, test.x, num_samples=args.draws)["y"]
    small = _adapters.without_ranks(base, vd.prune(bnn, guide), args.rank, args.dora)
    row = scores(forecast.probs.log(), test.y)
    row["ranks"] = sum(int(mask.sum()) for mask in _adapters.ranks_of(small).values())
    return row | {"bytes": _adapters.check_in_passing(base, small, test.x[:8])}, small


def run(args: argparse.Namespace, seed: int, tick: Callable[[], object]) -> dict[str, dict[str, float]]:
    torch.manual_seed(seed)
    first, train, test = _adapters.tasks(seed, args.shots)
    base = _adapters.backbone()
    _adapters.fit_plain(base, first, args.steps, 3e-3)
    rows: dict[str, dict[str, float]] = {}
    small: Any = None
    for rate in (0.0, *RATES):
        torch.manual_seed(seed)
        rows[f"MC dropout {rate}" if rate else f"plain {'DoRA' if args.dora else 'LoRA'}"] = deterministic(
            base, rate, train, test, args
        )
        tick()
    for kl_weight in KL_WEIGHTS:
        torch.manual_seed(seed)
        pyro.clear_param_store()
        rows[f"random, kl_weight {kl_weight:g}"], small = random(base, kl_weight, train, test, args)
        tick()
    _adapters.check_file(base, small, Path(args.out) / "adapter", test.x[:8])
    return rows


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """Means and standard errors over the seeds."""
    lines = [f"{'':<22}" + "".join(f"{column:>18}" for column in ("error, %", "NLL, nats", "ECE, %", "ranks", "bytes"))]
    for name, first in runs[0].items():
        cells = []
        for column in first:
            values = [one[name][column] for one in runs]
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.inf
            digits = {"NLL": 3, "bytes": 0}.get(column, 1)
            cells.append(f"{mean(values):,.{digits}f}" + (f" +- {error:,.{digits}f}" if error < math.inf else ""))
        lines.append(f"{name:<22}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    pyro.enable_validation(False)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of what peft asks it for
    seeds = range(args.seed, args.seed + args.seeds)
    with tqdm(total=5 * len(seeds), unit="training", disable=args.quiet) as bar:
        runs = [run(args, seed, bar.update) for seed in seeds]
    kind = "DoRA" if args.dora else "LoRA"
    print(f"{kind}, {args.shots} examples a class, {over_seeds(len(runs))}\n{table(runs)}")
    out = Path(args.out)
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1))
    print(f"the adapter without its pruned ranks, and result.json, are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "lora", seeds=3, data=False)
    parser.add_argument("--dora", action="store_true", help="DoRA: magnitude and direction apart")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--shots", type=int, default=20, help="examples of each class")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--draws", type=int, default=30, help="of the adapters, and of the masks of MC dropout")
    return _options.parse(parser, argv, steps=5, seeds=1, draws=3)


if __name__ == "__main__":
    main(arguments())
