"""From a posterior to a smaller, faster network, beside magnitude pruning of the same budget.

    python examples/deploy.py                                    # digits, 3 seeds, a few minutes
    python examples/deploy.py --dataset mnist --data-dir DIR     # LeNet-300-100; downloads MNIST into DIR if absent
    python examples/deploy.py --dataset mnist --net lenet-5 --data-dir DIR --examples 12000
    python examples/deploy.py --load out/deploy                  # table and times again, of the nets that a call left
    python examples/deploy.py --quick                            # one seed, one budget, no compiled form
    python examples/deploy.py --sparsity 0.98                    # a budget that is given, in place of the choice

Sparse variational dropout trains a net, which is pruned to each of several budgets and fine-tuned with its zeros held.
The sparsest that is within 0.1 points of the unpruned net, on data held out of training, is taken. Magnitude pruning
trains as long without noise, removes small weights meanwhile until as many are left, and is fine-tuned alike. One
table has error and NLL on the test data, which nothing before has seen, weights, bytes of the file (beside the entropy
of what is in it), and the fastest ms of a call of every form; a picture in --out has error against size, and files
there have the nets. Needs the extra safetensors, too: pip install -e ".[examples,safetensors]".
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
from _pruning import LENET, NETS, RECIPES, Pruners, make
from _seeds import mean_and_error, over_seeds
from _training import error, fit
from tqdm import tqdm

import pyro_vd as vd

BATCHES = (1, 100, 1000)
SHARES = (0.9, 0.95, 0.98, 0.985, 0.99, 0.995)  # of the weights that are pruned
TOLERANCE = 0.1  # points of validation error that pruning may cost


def sets(args: argparse.Namespace, seed: int) -> tuple[_data.Data, _data.Data]:
    """The data, and the same with a tenth of the training data, held out, in the place of the test data."""
    data = _data.load(args.dataset, args.data_dir)
    data = data.standardized() if RECIPES[args.net, args.dataset][5] else data
    data = data._replace(x_train=data.x_train[: args.examples], y_train=data.y_train[: args.examples])
    return data, data.with_validation(seed)


def train(args: argparse.Namespace, seed: int, tick: Callable[[], object]) -> dict[str, Any]:
    """Train, prune to every share, fine-tune and choose; the nets are written to --out, and what was chosen beside."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    _, held = sets(args, seed)
    _, tuning, lr, *_ = RECIPES[args.net, args.dataset]
    tuning = min(tuning, args.epochs or tuning)
    compiled = args.dataset != "digits" and not args.quick
    pruners = Pruners(args.net, args.dataset, held, args.epochs, compiled)
    tick()

    def validation(net: torch.nn.Module) -> float:
        return error(net, held.x_test, held.y_test)

    def tuned(net: torch.nn.Module) -> torch.nn.Module:
        fit(net, held, epochs=tuning, lr=lr / 3)
        return net

    curve = vd.threshold_curve(pruners.bnn, pruners.guide, validation)
    early = round(curve.choose(TOLERANCE).sparsity, 4)  # before fine-tuning, which mends much
    shares = sorted({early if args.sparsity is None else args.sparsity, *args.shares})
    nets = {"sparse VD": {share: tuned(pruners.variational(share)) for share in shares}}
    errors = {share: validation(net) for share, net in nets["sparse VD"].items()}
    chosen = choose(errors, curve.unpruned.error) if args.sparsity is None else args.sparsity
    tick()
    drawn = sorted({chosen, *args.shares})
    nets["magnitude"] = {share: tuned(pruners.magnitude(share)) for share in drawn}
    for name, pruned in nets.items():
        for share, net in {"dense": pruners.dense[name], **pruned}.items():
            vd.save_sparse(net, net_file(args.out, name, share, seed))
    tick()
    done = {
        "options": {key: vars(args)[key] for key in ("net", "dataset", "examples", "epochs", "shares")},
        "seed": seed,
        "before fine-tuning": early,
        "validation error": {"unpruned": curve.unpruned.error, **{f"{share:g}": errors[share] for share in shares}},
        "chosen": chosen,
    }
    (Path(args.out) / f"trained_{seed}.json").write_text(json.dumps(done, indent=1))
    return done


def is_within(error: float, unpruned: float) -> bool:
    return round(error - unpruned, 4) <= TOLERANCE  # of a number of examples: six of 6,000 are within 0.1 %


def choose(errors: dict[float, float], unpruned: float) -> float:
    """The sparsest within the tolerance, or else the best: of validation errors by the share that is pruned."""
    within = [share for share, error in errors.items() if is_within(error, unpruned)]
    return max(within, default=min(errors, key=lambda share: errors[share]))


def net_file(folder: str, name: str, share: float | str, seed: int) -> Path:
    label = share if isinstance(share, str) else f"{share:g}"
    return Path(folder) / f"{name.replace(' ', '_')}_{label}_{seed}.safetensors"


def found(folder: Path) -> list[dict[str, Any]]:
    """What ``train`` has written to a folder, by seed."""
    stored = [json.loads(file.read_text()) for file in folder.glob("trained_*.json")]
    if not stored:
        raise SystemExit(f"--load: expected trained_0.json in {folder}, found none; give that folder as --out first")
    if any(one["options"] != stored[0]["options"] for one in stored):
        raise SystemExit(f"--load: expected seeds of one training in {folder}, found several; remove the others")
    return sorted(stored, key=lambda trained: trained["seed"])


def measure(args: argparse.Namespace, trained: dict[str, Any], timed: bool) -> dict[str, Any]:
    """Errors, sizes and times of the nets that ``train`` has written to --load, or else to --out."""
    seed = trained["seed"]
    chosen = trained["chosen"] if args.sparsity is None else args.sparsity
    shares = sorted({trained["chosen"], *trained["options"]["shares"]})
    if chosen not in shares:
        raise SystemExit(
            f"--sparsity: expected one of {shares}, which were trained, got {chosen:g}; train without --load"
        )
    data, held = sets(args, seed)

    def loaded(name: str, share: float | str) -> torch.nn.Module:
        net = make(args.net, args.dataset, data.x_train.shape[1])
        net.load_state_dict(vd.load_sparse(net_file(args.load or args.out, name, share, seed)))
        return net.eval()

    rows: dict[str, dict[str, dict[str, float]]] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in ("sparse VD", "magnitude"):
        made = _deployed.forms(loaded(name, "dense"), loaded(name, chosen), held, timed and not args.quick)
        rows[name] = {form: _deployed.row(one, data) for form, one in made.items()}
        for batch in BATCHES if timed else ():
            for form, ms in _deployed.times(made, held, batch, args.timing).items():
                rows[name][form][f"ms at {batch}"] = ms
        nets = [loaded(name, share) for share in trained["options"]["shares"] or [chosen]]
        curves[name] = sorted((_deployed.sparse_file(net), error(net, data.x_test, data.y_test)) for net in nets)
        vd.save_sparse(made["shrunk"].net, net_file(args.out, name, "shrunk", seed))
    return {**trained, "chosen": chosen, "rows": rows, "curves": curves}


def means(runs: list[dict[str, Any]], name: str, form: str) -> dict[str, float]:
    """Over the seeds; times of the first, which alone has all forms."""
    same = [one["rows"][name][form] for one in runs if form in one["rows"][name]]
    return {c: sum(row[c] for row in same) / len(same) if c in same[-1] else same[0][c] for c in same[0]}


def cell(runs: list[dict[str, Any]], name: str, form: str, column: str, mean: float) -> str:
    """Error and NLL with their standard error, of the forms that all seeds have."""
    if column in ("error", "NLL"):
        found = [one["rows"][name][form][column] for one in runs if form in one["rows"][name]]
        digits = 2 if column == "error" else 4
        return f"{mean_and_error(torch.tensor(found, dtype=torch.float64), digits):>18}"
    return f"{mean:>12,.0f}" if column in ("weights", "bytes", "entropy") else f"{mean:>12.4f}"


def table(runs: list[dict[str, Any]]) -> str:
    columns = list(runs[0]["rows"]["sparse VD"]["dense"])
    lines = [f"{'':<22}" + "".join(f"{column:>{18 if column in ('error', 'NLL') else 12}}" for column in columns)]
    for name, rows in runs[0]["rows"].items():
        for form in rows:
            cells = [cell(runs, name, form, column, mean) for column, mean in means(runs, name, form).items()]
            lines.append(f"{name + ', ' + form:<22}" + "".join(cells))
        dense, pruned = means(runs, name, "dense"), means(runs, name, "shrunk")
        gains = []
        for batch in ("ms at 1000", "ms at 1"):
            form = min((form for form in rows if not form.startswith("dense")), key=lambda form: rows[form][batch])  # noqa: B023
            gains.append(f"{dense[batch] / rows[form][batch]:.1f}x as fast at batch {batch[6:]} ({form})")
        lines.append(
            f"{name}: file {dense['bytes'] / pruned['bytes']:.1f}x smaller; {', '.join(gains)}; "
            f"error {pruned['error'] - dense['error']:+.2f} points"
        )
    return "\n".join(lines)


def choice(trained: dict[str, Any]) -> str:
    """What was chosen, and what a choice before fine-tuning would have been."""
    (_, unpruned), *errors = trained["validation error"].items()
    seen = ", ".join(f"{100 * float(share):.4g} % {error:.2f}" for share, error in errors)
    none = not any(is_within(error, unpruned) for _, error in errors)
    return (
        f"seed {trained['seed']}: {100 * trained['chosen']:.4g} % of the weights pruned (before fine-tuning "
        f"{100 * trained['before fine-tuning']:.4g} %); validation errors: unpruned {unpruned:.2f}, {seen}"
        + (f"; none is within {TOLERANCE} points" if none else "")
    )


def main(args: argparse.Namespace) -> None:
    _options.require(safetensors='-e ".[safetensors]"')
    pyro.enable_validation(False)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    stored = found(Path(args.load)) if args.load else []
    with tqdm(total=len(stored) or 4 * len(seeds), unit="part", disable=args.quiet) as bar:
        runs: list[dict[str, Any]] = []
        for trained in stored or (train(args, seed, bar.update) for seed in seeds):
            vars(args).update(trained["options"])
            runs.append(measure(args, trained, timed=not runs))
            bar.update()
            (out / "result.json").write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1))
    print("\n".join(map(choice, runs)))
    first = "; times, and forms without +-, of the first seed" if len(runs) > 1 else ""
    print(f"{args.net}, {args.dataset}, {over_seeds(len(runs))}{first}; error in %, NLL in nats per example")
    print(table(runs))
    unpruned = {name: means(runs, name, "dense")["error"] for name in runs[0]["rows"]}
    _figures.error_against_bytes([one["curves"] for one in runs], unpruned, out / "deploy.png")
    print(f"deploy.png, result.json and the nets are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=_data.NAMES, default="digits")
    parser.add_argument("--net", choices=NETS, default=LENET)
    parser.add_argument("--data-dir", default="data", help="folder of the IDX files of mnist and fashion-mnist")
    parser.add_argument(
        "--epochs", type=int, help="of training, and at most as many of fine-tuning; default: the recipe's"
    )
    parser.add_argument("--examples", type=int, help="so many of the training data only")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, help="to prune: the table has one, the picture all"
    )
    parser.add_argument("--timing", type=float, default=0.1, help="seconds for each form in a round of timing")
    parser.add_argument(
        "--sparsity", type=float, help="share pruned of the nets in the table; default: chosen on held-out data"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one seed, one budget, no compiled form")
    parser.add_argument("--out", default="out/deploy", help="folder of the nets, numbers and picture")
    parser.add_argument("--load", metavar="DIR", help="the --out of an earlier call: its nets and seeds")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = _options.parse(parser, argv, seeds=1, shares=[], timing=0.001)
    if (args.net, args.dataset) not in RECIPES:
        parser.error(f"expected a net and data set of {list(RECIPES)}, got {args.net} on {args.dataset}")
    return args


if __name__ == "__main__":
    main(arguments())
