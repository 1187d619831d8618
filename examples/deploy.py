"""From a posterior to a smaller, faster network, beside magnitude pruning of the same budget.

    python examples/deploy.py                                    # digits, 3 seeds, a few minutes
    python examples/deploy.py --dataset mnist --data-dir DIR     # LeNet-300-100; downloads MNIST into DIR if absent
    python examples/deploy.py --dataset mnist --net lenet-5 --data-dir DIR --examples 12000 --shares 0.98
    python examples/deploy.py --quick                            # one seed, one budget, no compiled form
    python examples/deploy.py --sparsity 0.98                    # a budget that is given, in place of the threshold

Sparse variational dropout trains a net, a threshold is chosen on data held out of training, and the pruned net is
fine-tuned with its zeros held. Magnitude pruning trains as long without noise, removes small weights meanwhile until
as many are left, and is fine-tuned alike. One table has error and NLL on the test data, which nothing before has seen,
weights, bytes of the file (beside the entropy of what is in it), and the fastest ms of a call of every form; a picture
in --out has error against size, and files there have the nets. Needs the extra safetensors, too:
pip install -e ".[examples,safetensors]".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _data
import _deployed
import _figures
import _options
import pyro
import torch
from _pruning import LENET, NETS, RECIPES, Pruners
from _training import error, fit
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.sparsity import remove_masks

BATCHES = (1, 100, 1000)
SHARES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998)  # of the weights that are pruned, for the picture
TOLERANCE = 0.2  # points of validation error that the chosen threshold may cost


def run(args: argparse.Namespace, seed: int, tick: Callable[[], object]) -> dict[str, Any]:
    torch.manual_seed(seed)
    pyro.clear_param_store()
    data = _data.load(args.dataset, args.data_dir)
    epochs, tuning, lr, *_, standardize, _ = RECIPES[args.net, args.dataset]
    tuning = min(tuning, args.epochs or tuning)
    data = data.standardized() if standardize else data
    data = data._replace(x_train=data.x_train[: args.examples], y_train=data.y_train[: args.examples])
    held = data.with_validation(seed)
    pruners = Pruners(args.net, args.dataset, held, args.epochs, args.dataset != "digits" and not args.quick)
    tick()
    curve = vd.threshold_curve(pruners.bnn, pruners.guide, lambda net: error(net, held.x_test, held.y_test))
    chosen = curve.choose(TOLERANCE)
    share_of_forms = args.sparsity or chosen.sparsity
    rows: dict[str, dict[str, dict[str, float]]] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, pruned in (("sparse VD", pruners.variational), ("magnitude", pruners.magnitude)):
        shares = args.shares or [share_of_forms]
        nets = {share: pruned(share) for share in {share_of_forms, *shares}}
        for net in nets.values():
            fit(net, held, epochs=tuning, lr=lr / 3)
        timed = seed == args.first_seed
        made = _deployed.forms(pruners.dense[name], nets[share_of_forms], held, timed and not args.quick)
        rows[name] = {form: _deployed.row(one, data) for form, one in made.items()}
        for batch in BATCHES if timed else ():
            for form, ms in _deployed.times(made, held, batch, args.timing).items():
                rows[name][form][f"ms at {batch}"] = ms
        plain = [remove_masks(nets[share]) for share in shares]
        curves[name] = sorted((_deployed.sparse_file(net), error(net, data.x_test, data.y_test)) for net in plain)
        vd.save_sparse(made["shrunk"].net, Path(args.out) / f"{name.replace(' ', '_')}_{seed}.safetensors")
        tick()
    return {"threshold": chosen.log_alpha_threshold, "sparsity": chosen.sparsity, "rows": rows, "curves": curves}


def means(runs: list[dict[str, Any]], name: str, form: str) -> dict[str, float]:
    """Over the seeds; times of the first, which alone has all forms."""
    same = [one["rows"][name][form] for one in runs if form in one["rows"][name]]
    return {c: sum(row[c] for row in same) / len(same) if c in same[-1] else same[0][c] for c in same[0]}


def table(runs: list[dict[str, Any]]) -> str:
    columns = list(runs[0]["rows"]["sparse VD"]["dense"])
    lines = [f"{'':<22}" + "".join(f"{column:>12}" for column in columns)]
    for name, rows in runs[0]["rows"].items():
        for form in rows:
            found = means(runs, name, form)
            cells = [
                f"{v:>12,.0f}" if c in ("weights", "bytes", "entropy") else f"{v:>12.4f}" for c, v in found.items()
            ]
            lines.append(f"{name + ', ' + form:<22}" + "".join(cells))
        dense, pruned = means(runs, name, "dense"), means(runs, name, "shrunk")
        best = {batch: min(rows.values(), key=lambda row: row[batch])[batch] for batch in ("ms at 1", "ms at 1000")}
        lines.append(
            f"{name}: file {dense['bytes'] / pruned['bytes']:.1f}x smaller; "
            f"{dense['ms at 1000'] / best['ms at 1000']:.1f}x faster at batch 1000 and "
            f"{dense['ms at 1'] / best['ms at 1']:.1f}x at 1, in the form that is fastest there; "
            f"error {pruned['error'] - dense['error']:+.2f} points"
        )
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    _options.require(safetensors='-e ".[safetensors]"')
    pyro.enable_validation(False)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=3 * len(seeds), unit="part", disable=args.quiet) as bar:
        runs = []
        for seed in seeds:
            runs.append(run(args, seed, bar.update))
            (out / "result.json").write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1))
    for one in runs:
        print(f"chosen: threshold {one['threshold']:.2f} of log_alpha, {100 * one['sparsity']:.2f} % of weights pruned")
    if args.sparsity:
        print(f"in the table: {100 * args.sparsity:.2f} %")
    what = f"mean of {len(runs)} seeds" if len(runs) > 1 else "1 seed"
    print(f"{args.net}, {args.dataset}, {what}; error in %, NLL in nats per example\n{table(runs)}")
    _figures.error_against_bytes([one["curves"] for one in runs], out / "deploy.png")
    print(f"deploy.png and result.json are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=_data.NAMES, default="digits")
    parser.add_argument("--net", choices=NETS, default=LENET)
    parser.add_argument("--data-dir", default="data", help="folder of the IDX files of mnist and fashion-mnist")
    parser.add_argument(
        "--epochs", type=int, help="of training, and at most as many of fine-tuning; default: the recipe's"
    )
    parser.add_argument("--examples", type=int, help="so many of the training data only")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="pruned, for the picture")
    parser.add_argument("--timing", type=float, default=0.1, help="seconds for each form in a round of timing")
    parser.add_argument(
        "--sparsity", type=float, help="share pruned of the nets in the table; default: chosen on held-out data"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one seed, one budget, no compiled form")
    parser.add_argument("--out", default="out/deploy")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = _options.parse(parser, argv, seeds=1, shares=[], timing=0.001)
    if (args.net, args.dataset) not in RECIPES:
        parser.error(f"expected a net and data set of {list(RECIPES)}, got {args.net} on {args.dataset}")
    return args


if __name__ == "__main__":
    main(arguments())
