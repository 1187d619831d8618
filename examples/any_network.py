"""Any network becomes Bayesian without a change to it: a ResNet, a transformer, an LSTM, a U-Net, a bag of words;
BERT and GPT-2 of transformers, and graph networks of torch_geometric, where these are installed.

    python examples/any_network.py --net resnet|vit|lstm|packed|masked|unet|embedding_bag|bert|gpt2|gin|gcn
    python examples/any_network.py --compiled
    python examples/any_network.py --memory

Trains on scikit-learn's digits (the U-Net removes noise from them; nets of words have synthetic texts) and prints
every warning, the share of the weights that are sampled locally, and how the loss falls; writes its curve to --out.
``--compiled`` prints, for every net, whether its step is compiled, the time to the end of the first compiled one, and
that of an eager and of a compiled step. ``--memory`` prints the peak memory of a training step of a perceptron of ten
million weights: deterministic, "local", with activation checkpointing, under bfloat16, and compiled.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path

import _compiled_steps
import _figures
import _memory
import _options
import pyro
import pyro.distributions as dist
import torch
from _networks import NETWORKS
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import trange

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD


def data(net: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets for a network."""
    if net in ("embedding_bag", "bert", "gpt2"):
        topics = torch.randint(4, (1000,), generator=generator)
        words = torch.randint(1, 50, (1000, 12), generator=generator) + 50 * topics[:, None]
        noise = torch.randint(0, 200, (1000, 12), generator=generator)
        return torch.where(torch.rand(1000, 12, generator=generator) < 0.5, words, noise).clamp(max=199), topics
    images, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float().reshape(-1, 8, 8)
    if net in ("lstm", "packed", "masked"):
        return images, digits
    if net == "unet":
        clean = (images > 0.5).float()[:, None]
        return clean + 0.5 * torch.randn(clean.shape, generator=generator), clean
    return images[:, None], digits


def program(bnn: vd.BayesianModule, size: int, per_pixel: bool) -> Callable:
    """The Pyro model: a class for every example, or a bit for every pixel."""

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = bnn(x)
        with vd.data_plate(size, len(x)):
            likelihood = dist.Bernoulli(logits=logits).to_event(3) if per_pixel else dist.Categorical(logits=logits)
            return pyro.sample("y", likelihood, obs=y)

    return model


def task(net: str, batch: int, seed: int) -> tuple[Callable, Tensor, Tensor]:
    """The Pyro model of a net, and one batch of its data."""
    torch.manual_seed(seed)
    x, y = (one[:batch] for one in data(net, torch.Generator().manual_seed(seed)))
    return program(vd.BayesianModule(NETWORKS[net](), prior=vd.ImproperLogUniform()), len(x), net == "unet"), x, y


def train(args: argparse.Namespace) -> None:
    steps, batch = args.steps, args.batch
    torch.manual_seed(args.seed)
    x, y = data(args.net, torch.Generator().manual_seed(args.seed))
    bnn = vd.BayesianModule(NETWORKS[args.net](), prior=vd.ImproperLogUniform())
    model = program(bnn, len(x), args.net == "unet")
    guide = AutoSparseVD(model)
    elbo = vd.TraceVD_ELBO(estimator="local")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        print(vd.lrt_report(model, guide, x[:batch], y[:batch]))
        optimizer = torch.optim.Adam(elbo(model, guide).parameters(), lr=5e-3)
        nlls = []
        for step in trange(steps, unit="step", disable=args.quiet):
            elbo.kl_weight = min(1.0, step / (2 * steps))
            index = torch.randint(len(x), (batch,))
            optimizer.zero_grad()
            terms = elbo.checked_terms(model, guide, x[index], y[index])
            terms.loss.backward()
            optimizer.step()
            nlls.append(terms.data.item() / len(x))
    for warning in caught:
        print(f"warning: {warning.message}")
    print(f"{len(caught)} warnings")
    fifth = max(1, steps // 5)
    first, last = (sum(part) / len(part) for part in (nlls[:fifth], nlls[-fifth:]))
    print(f"nats per example: {first:.3f} in the first fifth of {steps} steps, {last:.3f} in the last")
    out = Path(args.out)
    _figures.loss_over_steps(nlls, f"{args.net}: fit of the data, a batch of {batch} a step", out / "loss.png")
    result = {"arguments": vars(args), "nats": nlls, "warnings": [str(warning.message) for warning in caught]}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"loss.png and result.json are in {out}/")


def memory(device: str) -> None:
    first = 0
    for name in _memory.MODES:
        with multiprocessing.get_context("spawn").Pool(1) as fresh:  # where nothing is freed that another has made
            peak = fresh.apply(_memory.peak, (name, device))
        first = first or peak.bytes
        print(
            f"{name:<14} peak {peak.bytes / 2**20:7.1f} MiB, {peak.bytes / first:.2f} of deterministic, largest tensor "
            f"{peak.largest / 2**20:5.1f} MiB"
        )


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "any_network", data=False)
    parser.add_argument("--net", choices=list(NETWORKS), default="resnet")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--compiled", action="store_true", help="a table of compiled steps instead, of every net")
    parser.add_argument("--nets", nargs="+", choices=list(NETWORKS), help="those of --compiled; default: all")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--device", default="cpu", help="for --memory")
    return _options.parse(parser, argv, steps=30)


if __name__ == "__main__":
    options = arguments()
    pyro.enable_validation(False)
    if options.memory:
        memory(options.device)
    elif options.compiled:
        _compiled_steps.table(options.nets or list(NETWORKS), lambda net: task(net, options.batch, options.seed))
    else:
        train(options)
