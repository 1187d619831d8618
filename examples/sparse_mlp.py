"""Sparse variational dropout on LeNet-300-100: train, prune, predict.

    python examples/sparse_mlp.py                                    # digits, about a minute
    python examples/sparse_mlp.py --dataset mnist --data-dir DIR     # downloads MNIST into DIR if absent
    python examples/sparse_mlp.py --threshold auto                   # chosen on a tenth of the training data
    python examples/sparse_mlp.py --quick                            # 20 epochs in eager steps

Reports held-out error before and after pruning, the sparsity of each layer and the held-out negative
log-likelihood of posterior samples; writes four pictures and the numbers to --out. With ``--threshold auto`` the
progress and the choice are on data held out of training, and the test data are used once, at the end.
``--backend numpyro`` needs that backend: pip install -e ".[examples,numpyro]" flax.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import _data
import _figures
import _options
import pyro
import torch
from _training import classifier, error, log_predictive, mlp, train
from torch import nn
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.training import linear_warm_up

THRESHOLD = 3.0
TOLERANCE = 0.2  # points of validation error that --threshold auto gives for fewer weights


class Recipe(NamedTuple):
    """A training schedule; ``warm_up`` and ``zero_from`` are shares of the run. Rates fall from its middle on."""

    epochs: int
    lr: float  # of Adam, for means and biases
    lr_ratio: float  # learning rate of log_sigma2 over that
    warm_up: tuple[float, float]  # kl_weight rises linearly from 0 to 1 between these
    zero_from: float  # from here on, means of weights with log_alpha over zero_above are set to 0
    zero_above: float
    standardize: bool  # the inputs
    std: float | None  # weights start from N(0, std**2); None: as PyTorch starts them


# Molchanov et al. 2017: 200 epochs, kl_weight 0 to epoch 5 and 1 from epoch 20 (their means are zeroed from the start).
MOLCHANOV = Recipe(200, 1e-3, 1.0, (0.025, 0.1), 0.5, THRESHOLD, True, 0.01)
FAST = Recipe(60, 2e-3, 5.0, (0.0, 0.15), 0.45, 2.0, True, 0.01)
SMALL = Recipe(120, 3e-3, 3.0, (0.2, 0.6), 1.0, THRESHOLD, False, None)
RECIPES = {
    "fast": {"digits": SMALL, "mnist": FAST, "fashion-mnist": FAST},
    "molchanov": dict.fromkeys(_data.NAMES, MOLCHANOV),
}


def main(args: argparse.Namespace) -> dict[str, float]:
    if args.backend == "numpyro":
        _options.require(numpyro='-e ".[numpyro]"', flax="flax")
    torch.manual_seed(args.seed)
    pyro.clear_param_store()
    pyro.enable_validation(False)
    recipe = RECIPES[args.recipe][args.dataset]
    data = _data.load(args.dataset, args.data_dir).to(args.device)
    data = data.standardized() if recipe.standardize else data
    test = data.x_test, data.y_test
    if args.threshold == "auto":  # what follows sees validation data in the place of the test data
        data = data.with_validation(args.seed)
    epochs = args.epochs or recipe.epochs
    net = mlp([data.x_train.shape[1], 300, 100, 10], args.device, recipe.std)
    bnn = vd.BayesianModule(net, prior=vd.ImproperLogUniform())
    model = classifier(bnn, len(data.x_train))
    guide = AutoSparseVD(model)
    history: list[dict[str, float]] = []
    bar = tqdm(total=epochs, unit="epoch", disable=args.quiet)

    def progress(epoch: int, elbo: vd.TraceVD_ELBO) -> None:
        with torch.no_grad():
            terms = elbo.terms(model, guide, data.x_train[:1000], data.y_train[:1000])
        row = {
            "epoch": epoch + 1,
            "negative ELBO": terms.negative_elbo.item() / len(data.x_train),
            "KL": terms.kl_total.item() / len(data.x_train),
            "sparsity": 100 * vd.sparsity_report(guide, THRESHOLD).sparsity,
            "error": error(vd.prune(bnn, guide, THRESHOLD), data.x_test, data.y_test),
        }
        history.append(row)
        if epoch + 1 >= recipe.zero_from * epochs:
            guide.zero_above = recipe.zero_above
        bar.update()
        bar.set_postfix_str(
            f"loss {row['negative ELBO']:.3f}, KL {row['KL']:.3f} nats/example, sparsity {row['sparsity']:.2f} %, "
            f"held-out error {row['error']:.2f} %"
        )

    schedule = {"lr": recipe.lr, "lr_ratio": recipe.lr_ratio, "kl_weight": linear_warm_up(*recipe.warm_up, num_steps=1)}
    start = time.perf_counter()
    if args.backend == "numpyro":
        import _numpyro_training

        _numpyro_training.train(net, guide, data, epochs=epochs, seed=args.seed, progress=progress, **schedule)
    else:
        train(model, guide, data, epochs=epochs, progress=progress, compiled=not args.eager, **schedule)
    bar.close()
    print(f"training took {time.perf_counter() - start:.0f} s")
    threshold = THRESHOLD if args.threshold == "auto" else args.threshold
    if args.threshold == "auto":
        curve = vd.threshold_curve(bnn, guide, lambda net: error(net, data.x_test, data.y_test))
        threshold = curve.choose(TOLERANCE).log_alpha_threshold
        print(f"validation error against the threshold\n{curve}")
        print(f"threshold {threshold:.3f}: the sparsest within {TOLERANCE} points of the unpruned network")
    return report(args, bnn, guide, data._replace(x_test=test[0], y_test=test[1]), history, threshold)


def report(args, bnn, guide, data, history, chosen) -> dict[str, float]:
    """Print what was reached, write it and the pictures to ``args.out``."""
    sparsity = vd.sparsity_report(guide, chosen)
    log_probs = log_predictive(bnn, guide, data.x_test)
    result = {
        "error_mean_network": error(vd.prune(bnn, guide, math.inf), data.x_test, data.y_test),
        "error_pruned": error(vd.prune(bnn, guide, chosen), data.x_test, data.y_test),
        "error_posterior_samples": 100 * (log_probs.argmax(-1) != data.y_test).float().mean().item(),
        "nll_posterior_samples": nn.functional.nll_loss(log_probs, data.y_test).item(),
        "compression": sparsity.compression,
        "threshold": chosen,
    }
    print(sparsity)
    print(f"held-out error, mean network          {result['error_mean_network']:6.2f} %")
    print(f"held-out error, pruned network        {result['error_pruned']:6.2f} %")
    print(f"held-out error, 20 posterior samples  {result['error_posterior_samples']:6.2f} %")
    print(f"held-out NLL, 20 posterior samples    {result['nll_posterior_samples']:6.4f} nats per example")

    rows = []
    for threshold in torch.linspace(-4, 8, 25).tolist():
        kept = 100 * (1 - vd.sparsity_report(guide, threshold).sparsity)
        rows.append((threshold, error(vd.prune(bnn, guide, threshold), data.x_test, data.y_test), max(kept, 1e-3)))
    out = Path(args.out)
    first = guide.weight_sites[0]
    kept = (guide.log_alpha(first) <= chosen).sum(0).reshape(data.side, data.side)
    log_alpha = {site: guide.log_alpha(site).detach().cpu().numpy() for site in guide.weight_sites}
    warm_up = RECIPES[args.recipe][args.dataset].warm_up
    _figures.training_curves(history, tuple(len(history) * share for share in warm_up), THRESHOLD, out / "training.png")
    _figures.error_against_threshold(rows, chosen, out / "threshold.png")
    _figures.log_alpha_histogram(log_alpha, chosen, out / "log_alpha.png")
    _figures.kept_inputs(kept.cpu().numpy(), len(guide.log_alpha(first)), out / "kept_inputs.png")
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), **result}, indent=1))
    print(f"pictures and result.json are in {out}/")
    return result


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "sparse_mlp")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--recipe", choices=RECIPES, default="fast")
    parser.add_argument("--backend", choices=("pyro", "numpyro"), default="pyro", help="what trains")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="no compiled steps")
    parser.add_argument(
        "--threshold", type=lambda text: text if text == "auto" else float(text), default=THRESHOLD,
        help="of log_alpha, natural log; auto: chosen on held-out training data",
    )  # fmt: skip
    return _options.parse(parser, argv, epochs=20, eager=True)


if __name__ == "__main__":
    main(arguments())
