"""How good the uncertainty of a classifier is: variational families beside the usual methods.

    python examples/uncertainty.py --data-dir DIR       # Fashion-MNIST; downloads it and MNIST into DIR if absent
    python examples/uncertainty.py --quick              # digits, one seed, one family

Every method trains the same net on the same 10,000 images for as many epochs, and is judged on images of the test set.
MNIST (for MNIST, the clothes) and uniform noise are images from elsewhere, which a good prediction is unsure of: its
entropy is compared. One table has the mean over the seeds and its standard error: error (%), NLL (nats), calibration
error (ECE, %), and of each kind of other images the AUROC and the share that passes where 95 % of the usual images do
(FPR95), both in %. The ensemble trains five times as much as the others. Needs the extra metrics, too:
pip install -e ".[examples,metrics]".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import _data
import _figures
import _options
import pyro
import pyro.distributions as dist
import torch
from _seeds import over_seeds, table
from _training import classifier, fit, mlp, train
from torch import Tensor, nn
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD, AutoVariationalDropout
from pyro_vd.training import linear_warm_up

MODES = ("weights", "local", "moments", "mean")
FAMILIES: dict[str, tuple[Any, Callable, float]] = {  # prior, guide, weight of the KL
    "mean field": (dist.Normal(0.0, 0.1), lambda model: AutoMeanField(model, init_log_sigma2=-7.0), 0.1),
    "sparse VD": (vd.ImproperLogUniform(), AutoSparseVD, 1.0),
    "variational dropout": (vd.ImproperLogUniform(), AutoVariationalDropout, 1.0),
}
MEMBERS, DROPOUT_RATE, LR, LR_RATIO = 5, 0.2, 2e-3, 5.0
Predict = Callable[[Tensor], vd.Predictive]


def of_logits(logits: Callable[[Tensor], Tensor]) -> Predict:
    """A prediction from logits, shape (draws, examples, classes)."""
    return torch.no_grad()(lambda x: vd.Predictive(dist.Categorical(logits=logits(x)), "y"))


def plain(data: _data.Data, sizes: list[int], epochs: int, rate: float = 0.0) -> nn.Sequential:
    """A net trained on the cross-entropy, with dropout before every layer but the first."""
    net = mlp(sizes)
    for i in reversed(range(2, len(net), 2) if rate else ()):
        net.insert(i, nn.Dropout(rate))
    fit(net.train(), data, epochs=epochs, lr=LR)
    return net.eval()


def variational(family: str, data: _data.Data, sizes: list[int], args: argparse.Namespace) -> dict[str, Predict]:
    """A prediction for each mode, all of one posterior."""
    prior, make, kl_weight = FAMILIES[family]
    bnn = vd.BayesianModule(mlp(sizes), prior)
    model = classifier(bnn, len(data.x_train))
    guide = make(model)
    ramp = linear_warm_up(0.0, 0.5, num_steps=1)
    train(
        model, guide, data, epochs=args.epochs, lr=LR, lr_ratio=LR_RATIO, kl_weight=lambda done: kl_weight * ramp(done)
    )

    def predict(mode: str) -> Predict:
        draws = 1 if mode == "mean" else args.draws
        return lambda x: vd.predictive_distribution(model, guide, x, num_samples=draws, mode=mode)["y"]  # type: ignore

    return {f"{family}, {mode}": predict(mode) for mode in MODES}


def methods(data: _data.Data, args: argparse.Namespace, tick: Callable[[], object]) -> dict[str, Predict]:
    sizes = [data.x_train.shape[1], args.hidden, args.hidden // 3, 10]
    nets = [plain(data, sizes, args.epochs) for _ in range(MEMBERS)]
    tick()
    dropout = plain(data, sizes, args.epochs, DROPOUT_RATE).train()
    predictions = {
        "deterministic": of_logits(lambda x: nets[0](x)[None]),
        "MC dropout": of_logits(lambda x: torch.stack([dropout(x) for _ in range(args.draws)])),
        f"ensemble of {MEMBERS}": of_logits(lambda x: torch.stack([net(x) for net in nets])),
    }
    tick()
    for family in args.families:
        predictions |= variational(family, data, sizes, args)
        tick()
    return predictions


def elsewhere(args: argparse.Namespace, like: _data.Data) -> dict[str, Tensor]:
    """Images of other things, as pixels in 0..1."""
    noise = {"noise": torch.rand_like(like.x_test)}
    if args.dataset == "digits":
        return {"negative": 1 - like.x_test} | noise
    other = "mnist" if args.dataset == "fashion-mnist" else "fashion-mnist"
    return {other: _data.load(other, args.data_dir).x_test} | noise


def judged(prediction: vd.Predictive, labels: Tensor, outside: dict[str, vd.Predictive]) -> dict[str, float]:
    metrics, entropy = vd.metrics, prediction.entropy()
    row = {
        "error": 100 * (1 - metrics.accuracy(prediction, labels)),
        "NLL": metrics.nll(prediction, labels),
        "ECE": 100 * metrics.calibration_error(prediction, labels),
    }
    for name, other in outside.items():
        row[f"{name} AUROC"] = 100 * metrics.ood_auroc(entropy, other.entropy())
        row[f"{name} FPR95"] = 100 * metrics.ood_fpr(entropy, other.entropy())
    return row


def run(args: argparse.Namespace, seed: int, tick: Callable[[], object]) -> tuple[dict[str, dict[str, float]], tuple]:
    """The rows of one seed, and the predictions of the first variational method, for the pictures."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    data = _data.load(args.dataset, args.data_dir)
    others = elsewhere(args, data)
    chosen = torch.randperm(len(data.x_train))[: args.examples]
    data = data._replace(x_train=data.x_train[chosen], y_train=data.y_train[chosen])
    mean, std = data.x_train.mean(), data.x_train.std()
    others = {name: (x[: args.judged] - mean) / std for name, x in others.items()}
    data = data.standardized()
    x, labels = data.x_test[: args.judged], data.y_test[: args.judged]
    rows: dict[str, dict[str, float]] = {}
    shown: tuple = ()
    for name, predict in methods(data, args, tick).items():
        start = perf_counter()
        inside = predict(x)
        seconds = perf_counter() - start
        outside = {kind: predict(images) for kind, images in others.items()}
        rows[name] = judged(inside, labels, outside) | {"seconds": seconds}
        if name == f"{args.families[0]}, weights":
            shown = (name, inside, labels, outside)
    return rows, shown


def main(args: argparse.Namespace) -> None:
    _options.require(torchmetrics='-e ".[metrics]"')
    pyro.enable_validation(False)
    seeds = range(args.seed, args.seed + args.seeds)
    runs: list[Any] = []
    shown: Any = ()
    with tqdm(total=len(seeds) * (2 + len(args.families)), unit="method", disable=args.quiet) as bar:
        for seed in seeds:
            rows, shown = run(args, seed, bar.update)
            runs.append(rows)
    title = f"{args.dataset}, {args.examples} images, {args.epochs} epochs, {args.draws} draws"
    print(f"{title}: {over_seeds(len(runs))}; seconds: of a prediction\n{table(runs)}")
    out = Path(args.out)
    _figures.judged_classes(*shown, path=out / "uncertainty.png")
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1))
    print(f"uncertainty.png and result.json are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "uncertainty", seeds=3)
    parser.set_defaults(dataset="fashion-mnist")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--examples", type=int, default=10_000, help="images of the training set")
    parser.add_argument("--judged", type=int, default=2_000, help="test images, and images of each other kind")
    parser.add_argument(
        "--hidden", type=int, default=100, help="units of the first hidden layer; the second has a third"
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--draws", type=int, default=50)
    quick = {"dataset": "digits", "epochs": 10, "seeds": 1, "hidden": 30, "judged": 200, "families": list(FAMILIES)[:1]}
    return _options.parse(parser, argv, **quick)


if __name__ == "__main__":
    main(arguments())
