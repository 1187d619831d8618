"""From a posterior to a smaller, faster network, beside magnitude pruning of the same budget.

    python examples/deploy.py                                    # digits, 3 seeds, a few minutes
    python examples/deploy.py --dataset mnist --data-dir DIR     # LeNet-300-100; downloads MNIST into DIR if absent
    python examples/deploy.py --quick                            # one seed, one budget, no compiled form

Sparse variational dropout trains a net, a threshold is chosen on data held out of training, and the pruned net is
fine-tuned with its zeros held. Magnitude pruning trains as long without noise, takes out small weights as it does until
as many are left, and is fine-tuned alike. One table has error and NLL on the test data, which nothing before has seen,
weights, bytes of the file, and the fastest ms of a call of every form; a picture in --out has error against size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _data
import _figures
import pyro
import torch
from _pruning import RECIPES, Pruners, forms
from _training import error, fit
from torch import nn
from torch.utils import benchmark
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.sparsity import remove_masks

BATCHES = (1, 100, 1000)
SHARES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998)  # of the weights that are pruned, for the picture
TOLERANCE = 0.2  # points of validation error that the chosen threshold may cost


@torch.no_grad()
def measured(net: nn.Module, data: _data.Data, batches: tuple[int, ...]) -> dict[str, float]:
    """Error in percent, NLL in nats per example, nonzero weights, bytes of the file, ms a call."""
    nll = nn.functional.cross_entropy(net(data.x_test), data.y_test).item()
    plain = getattr(net, "_orig_mod", net)  # of a compiled net
    with TemporaryDirectory() as folder:
        size = vd.save_sparse(plain, Path(folder) / "net.safetensors")
    matrices = [t for name, t in plain.state_dict().items() if t.dim() > 1 or name.endswith("values")]
    row = {"error": error(net, data.x_test, data.y_test), "NLL": nll,
           "weights": sum(int(t.count_nonzero()) for t in matrices), "bytes": size}  # fmt: skip
    for batch in batches:
        x = data.x_train[:batch] if batch <= len(data.x_train) else data.x_train.repeat(2, 1)[:batch]
        timer = benchmark.Timer("net(x)", globals={"net": net, "x": x}, num_threads=torch.get_num_threads())
        row[f"ms at {batch}"] = 1e3 * min(timer.blocked_autorange(min_run_time=0.2).times)
    return row


def run(args: argparse.Namespace, seed: int, tick: Callable[[], object]) -> dict[str, Any]:
    torch.manual_seed(seed)
    pyro.clear_param_store()
    data = _data.load(args.dataset, args.data_dir)
    epochs, tuning, lr, *_, standardize, _ = RECIPES[args.dataset]
    tuning = min(tuning, args.epochs or tuning)
    data = data.standardized() if standardize else data
    held = data.with_validation(seed)
    pruners = Pruners(args.dataset, held, args.epochs, compiled=args.dataset != "digits" and not args.quick)
    tick()
    curve = vd.threshold_curve(pruners.bnn, pruners.guide, lambda net: error(net, held.x_test, held.y_test))
    chosen = curve.choose(TOLERANCE)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, pruned in (("sparse VD", pruners.variational), ("magnitude", pruners.magnitude)):
        shares = [chosen.sparsity] if args.quick else SHARES
        nets = {share: pruned(share) for share in {chosen.sparsity, *shares}}
        for net in nets.values():
            fit(net, held, epochs=tuning, lr=lr / 3)
        batches = BATCHES if seed == args.first_seed else ()
        compared = forms(pruners.dense[name], nets[chosen.sparsity], held, bool(batches) and not args.quick)
        rows[name] = {form: measured(net, data, batches) for form, net in compared.items()}
        points = [measured(remove_masks(nets[share]), data, ()) for share in shares]
        curves[name] = sorted((int(point["bytes"]), point["error"]) for point in points)
        tick()
    return {"threshold": chosen.log_alpha_threshold, "sparsity": chosen.sparsity, "rows": rows, "curves": curves}


def table(runs: list[dict[str, Any]]) -> str:
    """Means over the seeds; times of the first, where the shrunk net is compiled, too."""
    columns = list(runs[0]["rows"]["sparse VD"]["dense"])
    lines = [f"{'':<22}" + "".join(f"{column:>12}" for column in columns)]
    for name, rows in runs[0]["rows"].items():
        for form, first in rows.items():
            same = [one["rows"][name].get(form, one["rows"][name]["shrunk"]) for one in runs]
            means = {c: sum(row[c] for row in same) / len(same) if c in same[-1] else first[c] for c in columns}
            cells = [f"{v:>12,.0f}" if c in ("weights", "bytes") else f"{v:>12.4f}" for c, v in means.items()]
            lines.append(f"{name + ', ' + form:<22}" + "".join(cells))
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    pyro.enable_validation(False)
    seeds = range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds))
    with tqdm(total=3 * len(seeds), unit="part", disable=args.quiet) as bar:
        runs = [run(args, seed, bar.update) for seed in seeds]
    for one in runs:
        print(f"threshold {one['threshold']:.2f} of log_alpha, {100 * one['sparsity']:.2f} % of the weights pruned")
    print(f"{args.dataset}, {len(runs)} seeds; error in %, NLL in nats per example\n{table(runs)}")
    out = Path(args.out)
    _figures.error_against_bytes([one["curves"] for one in runs], out / "deploy.png")
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1))
    print(f"deploy.png and result.json are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=_data.NAMES, default="digits")
    parser.add_argument("--data-dir", default="data", help="folder of the IDX files of mnist and fashion-mnist")
    parser.add_argument(
        "--epochs", type=int, help="of training, and at most as many of fine-tuning; default: the recipe's"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one seed, one budget, no compiled form")
    parser.add_argument("--out", default="out/deploy")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(arguments())
