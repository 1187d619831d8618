"""What the examples share: a perceptron, its Pyro model, and a training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from _data import Data
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor, nn

import pyro_vd as vd

Progress = Callable[[int, vd.TraceVD_ELBO], object]


def mlp(sizes: Sequence[int], device: str = "cpu", std: float | None = None) -> nn.Sequential:
    """Linear layers with ReLU between; weights from N(0, std**2) if given, as PyTorch starts them if not."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        if std is not None:
            nn.init.normal_(layers[-2].weight, std=std)  # type: ignore[arg-type]
            nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1]).to(device)


def classifier(bnn: nn.Module, dataset_size: int) -> Callable[..., Tensor]:
    """The Pyro model: a categorical likelihood on the logits of ``bnn``."""

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = bnn(x)
        with vd.data_plate(dataset_size, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def train(
    model: Callable,
    guide: AutoGuide,
    data: Data,
    *,
    epochs: int,
    lr: float,
    lr_ratio: float = 1.0,
    decay_from: float = 0.5,
    kl_weight: Callable[[float], float] = lambda done: 1.0,
    estimator: Literal["local", "shared", "per_example", "flipout"] = "local",
    batch: int = 100,
    compiled: bool = False,
    progress: Progress = lambda epoch, elbo: None,
) -> vd.TraceVD_ELBO:
    """Minimise the negative ELBO with Adam.

    Args:
        lr: learning rate of means and deterministic parameters, constant to the share ``decay_from`` of the
            run, then linearly to 0.
        lr_ratio: learning rate of the noise parameters over ``lr``.
        kl_weight: from the share of the run that is done, 0..1, to the weight of the KL.
        compiled: take compiled steps; worth its compilation, about half a minute, for all but the shortest runs.
        progress: called after every epoch.
    """
    size = len(data.x_train)
    guide(data.x_train[:batch], data.y_train[:batch])  # makes its parameters
    elbo = vd.TraceVD_ELBO(estimator=estimator)
    loss = elbo(model, guide)
    noise = [p for name, p in guide.named_parameters() if "locs" not in name.split(".")]
    means = [p for p in loss.parameters() if all(p is not other for other in noise)]
    groups = [{"params": means, "lr": lr}, {"params": noise, "lr": lr * lr_ratio}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: min(1.0, (1 - epoch / epochs) / (1 - decay_from))
    )
    svi = vd.CompiledSVI(model, guide, lambda parameters: optimizer, elbo)

    def eager_step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    step = svi.step if compiled else eager_step
    for epoch in range(epochs):
        for i, index in enumerate(torch.randperm(size, device=data.x_train.device).split(batch)):
            elbo.kl_weight = kl_weight((epoch + i * batch / size) / epochs)
            step(data.x_train[index], data.y_train[index])
        decay.step()
        progress(epoch, elbo)
    return elbo


def fit(
    net: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float,
    decay_from: float = 0.5,
    batch: int = 100,
    progress: Callable[[float], object] = lambda done: None,
) -> None:
    """Minimise the cross-entropy with Adam; ``lr`` is constant to ``decay_from``, then linear to 0, as in ``train``.

    ``progress`` is called after every epoch with the share of the run that is done.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: min(1.0, (1 - epoch / epochs) / (1 - decay_from))
    )
    for epoch in range(epochs):
        for index in torch.randperm(len(data.x_train), device=data.x_train.device).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(data.x_train[index]), data.y_train[index]).backward()
            optimizer.step()
        decay.step()
        progress((epoch + 1) / epochs)


def log_predictive(bnn: nn.Module, guide: AutoGuide, x: Tensor, num_samples: int = 20) -> Tensor:
    """Log probabilities of the classes, averaged over weight draws; a draw is one function for all of ``x``."""
    draws = vd.posterior_predictive(lambda x: pyro.deterministic("logits", bnn(x)), guide, x, num_samples=num_samples)
    return draws["logits"].log_softmax(-1).logsumexp(0) - math.log(num_samples)


@torch.no_grad()
def error(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Classification error in percent."""
    return 100 * (net(x).argmax(-1) != y).float().mean().item()
