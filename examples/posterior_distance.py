"""How far a variational posterior is from the true one: families against NUTS on a small Bayesian net.

    python examples/posterior_distance.py              # 3 seeds, two minutes of a processor
    python examples/posterior_distance.py --quick      # one seed, short runs

A net 1-20-1 with tanh fits 40 points of a curve with a gap in its middle; all of its parameters have proper Gaussian
priors: the log-uniform prior of sparse variational dropout is improper, with it there is no posterior to be far from,
and NUTS has nothing to sample. NumPyro's NUTS samples the posterior of these. Each family is trained on the same data
under the same priors, and its draws are compared to those of NUTS on a grid:

    mean           root of the mean square of the difference of the function's means, over NUTS's standard deviation
    deviation      standard deviation of the function over that of NUTS: geometric mean in the data, and in the gap
    variation      total variation between the predictive densities, mean over the grid: 0 the same, 1 nothing in common
    log density    of 200 points held out, nats each

Mean +- standard error over the seeds; a second chain of NUTS shows what of it is noise. posterior.png (the last seed)
and result.json are in --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _figures
import _options
import pyro
import pyro.distributions as dist
import torch
from _curve import FAMILIES, GAP, GRID, NOISE, fitted, functions, new_net, points, sampled
from _seeds import table
from torch import Tensor, nn
from tqdm import tqdm

import pyro_vd as vd


def variation(f: Tensor, g: Tensor) -> float:
    """Total variation between the mixtures of ``N(f, NOISE**2)`` and of ``N(g, NOISE**2)``, mean over the grid."""
    ends = torch.cat([f, g])
    places = torch.linspace(ends.min().item() - 4 * NOISE, ends.max().item() + 4 * NOISE, 400)[:, None, None]
    p, q = (dist.Normal(h, NOISE).log_prob(places).exp().mean(1) for h in (f, g))
    return (0.5 * (p - q).abs().sum(0) * (places[1] - places[0]).item()).mean().item()


@torch.no_grad()
def compared(net: nn.Module, draws: Any, truth: Tensor, held: tuple[Tensor, Tensor]) -> dict[str, float]:
    f = functions(net, draws, GRID)
    ratio = (f.std(0) / truth.std(0)).log()
    density = vd.Predictive(dist.Normal(functions(net, draws, held[0]), NOISE), "y").log_prob(held[1])
    return {
        "mean": ((f.mean(0) - truth.mean(0)) / truth.std(0)).square().mean().sqrt().item(),
        "deviation, data": ratio[~GAP].mean().exp().item(),
        "deviation, gap": ratio[GAP].mean().exp().item(),
        "variation": sum(variation(f[:, [i]], truth[:, [i]]) for i in range(0, len(GRID), 5)) / len(GRID[::5]),
        "log density": density.mean().item(),
    }


def main(args: argparse.Namespace) -> None:
    pyro.enable_validation(False)
    runs: list[dict[str, dict[str, float]]] = []
    picture: Any = None
    for seed in tqdm(range(args.seed, args.seed + args.seeds), unit="seed", disable=args.quiet):
        pyro.set_rng_seed(seed)
        random = torch.Generator().manual_seed(seed)
        (x, y), held = points(40, random), points(200, random)
        posterior, again = (sampled(x, y, seed + 100 * chain, args) for chain in range(2))
        nets = {"NUTS, another chain": (new_net(), again)}
        nets |= {name: fitted(name, x, y, args) for name in FAMILIES}
        with torch.no_grad():
            truth = functions(new_net(), posterior, GRID)
            curves = {"NUTS": truth} | {name: functions(*nets[name], GRID) for name in FAMILIES}
        runs.append({name: compared(*one, truth, held) for name, one in nets.items()})
        picture = ({name: f.numpy() for name, f in curves.items()}, GRID.squeeze(1).numpy(), x.numpy(), y.numpy())
    print(f"{f'mean of {len(runs)} seeds' if len(runs) > 1 else '1 seed'}\n{table(runs, 3)}")
    out = Path(args.out)
    curves, grid, x, y = picture
    _figures.posteriors_of_a_curve(curves, grid, x, y, NOISE, out / "posterior.png")
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1))
    print(f"posterior.png and result.json are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "posterior_distance", seeds=3, data=False)
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--warm-up", type=int, default=400, help="steps of NUTS before the draws")
    parser.add_argument("--samples", type=int, default=600, help="draws")
    return _options.parse(parser, argv, seeds=1, steps=20, warm_up=30, samples=20)


if __name__ == "__main__":
    main(arguments())
