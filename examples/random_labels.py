"""Shuffled labels: sparse variational dropout prunes everything, binary dropout memorises.

    python examples/random_labels.py
    python examples/random_labels.py --dataset mnist --data-dir DIR

LeNet-300-100 on labels that say nothing about the images (Molchanov et al. 2017, section 5.5). Prints training
accuracy, chance (the largest class) and compression of both.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import _data
import _options
import pyro
import torch
from _training import classifier, error, mlp, train
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import AutoBernoulliDropout, AutoSparseVD, mixed_guide
from pyro_vd.training import linear_warm_up


def hidden_dropout(model):
    """Binary dropout with rate 0.5 on the hidden units, none on the inputs."""
    first = AutoBernoulliDropout(model, 0.0, where="net.0.weight")
    return mixed_guide(model, first, AutoBernoulliDropout(model, 0.5, where=lambda site: site != "net.0.weight"))


FAMILIES = {
    "sparse VD": (AutoSparseVD, 3.0),
    "binary dropout": (hidden_dropout, math.inf),
}


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    pyro.enable_validation(False)
    data = _data.load(args.dataset, args.data_dir)
    chosen = torch.randperm(len(data.x_train))[: args.examples]
    y = data.y_train[chosen]
    data = data._replace(x_train=data.x_train[chosen], y_train=y[torch.randperm(len(y))])
    chance = 100 * y.bincount().max().item() / len(y)
    result = {}
    print(f"{len(y)} examples with shuffled labels; chance (the largest class) is {chance:.2f} %")
    print(f"{'family':<16}{'training accuracy':>18}{'weights kept':>14}{'compression':>13}")
    for name, (make, threshold) in FAMILIES.items():
        pyro.clear_param_store()
        bnn = vd.BayesianModule(mlp([data.x_train.shape[1], 300, 100, 10]), vd.ImproperLogUniform())
        model = classifier(bnn, len(y))
        guide = make(model)
        bar = tqdm(total=args.epochs, desc=name, unit="epoch", disable=args.quiet, leave=False)
        train(
            model,
            guide,
            data,
            epochs=args.epochs,
            lr=2e-3,
            lr_ratio=5.0,
            kl_weight=linear_warm_up(0.0, 0.2, num_steps=1),
            progress=lambda epoch, elbo, bar=bar: bar.update(),
        )
        bar.close()
        report = vd.sparsity_report(guide, threshold)
        accuracy = 100 - error(vd.prune(bnn, guide, threshold), data.x_train, data.y_train)
        compression = f"{report.compression:.1f}x" if report.total.kept else "all pruned"
        print(f"{name:<16}{accuracy:>16.2f} %{report.total.kept:>14,}{compression:>13}")
        result[name] = {"training_accuracy": accuracy, "kept": report.total.kept, "weights": report.total.weights}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), "chance": chance, **result}, indent=1))
    print(f"result.json is in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "random_labels")
    parser.add_argument("--examples", type=int, default=2000, help="at most this many training examples")
    parser.add_argument("--epochs", type=int, default=400)
    return _options.parse(parser, argv, epochs=20, examples=300)


if __name__ == "__main__":
    main(arguments())
