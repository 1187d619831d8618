"""Sparse variational dropout without Pyro and without pyro_vd: what ``benchmark.py`` measures them against.

Layers with the local reparameterization of Kingma et al. 2015 and the KL of Molchanov et al. 2017, equation 14, as
one writes them for a project of one's own; nets that take these layers or PyTorch's; and the training loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

K1, K2, K3 = 0.63576, 1.87320, 1.48695


class LRTLinear(nn.Linear):
    """``weight`` is the posterior mean; the bias is deterministic."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.log_sigma2 = nn.Parameter(torch.full_like(self.weight, -10.0))

    def forward(self, x: Tensor) -> Tensor:
        return sampled(super().forward(x), F.linear(x.square(), self.log_sigma2.exp()))


class LRTConv2d(nn.Conv2d):
    """``weight`` is the posterior mean; the bias is deterministic. Stride 1, no padding."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int):
        super().__init__(inputs, outputs, kernel_size)
        self.log_sigma2 = nn.Parameter(torch.full_like(self.weight, -10.0))

    def forward(self, x: Tensor) -> Tensor:
        return sampled(super().forward(x), F.conv2d(x.square(), self.log_sigma2.exp()))


def sampled(mean: Tensor, variance: Tensor) -> Tensor:
    return mean + (variance + 1e-16).sqrt() * torch.randn_like(mean)


def kl(net: nn.Module) -> Tensor:
    """KL to the log-uniform prior, nats, summed over all weights."""
    total = torch.zeros((), device=next(net.parameters()).device)
    for layer in net.modules():
        if isinstance(layer, (LRTLinear, LRTConv2d)):
            log_alpha = layer.log_sigma2 - 2 * torch.log(layer.weight.abs() + 1e-8)
            total = total + (K1 * torch.sigmoid(-K2 - K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)).sum()
    return total


def nll(net: nn.Module, x: Tensor, y: Tensor, dataset_size: int) -> Tensor:
    """Negative log likelihood of the data set, nats."""
    return dataset_size * F.cross_entropy(net(x), y)


def negative_elbo(net: nn.Module, x: Tensor, y: Tensor, dataset_size: int) -> Tensor:
    return nll(net, x, y, dataset_size) + kl(net)


def mlp(sizes: list[int], linear: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def lenet_5(linear: type[nn.Linear] = nn.Linear, conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    """The LeNet-5 of Caffe: 20 and 50 filters, 500 units."""
    return nn.Sequential(
        *(conv(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), conv(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), linear(800, 500), nn.ReLU(), linear(500, 10)),
    )


def training(
    loss: Callable[..., Tensor], parameters: Iterable[Tensor], batches: list, lr: float, compiled: bool = False
) -> Callable[[int], Tensor]:
    """From the number of a batch to its loss, after a step of Adam."""
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    if compiled:
        loss = torch.compile(loss, fullgraph=True, dynamic=False)

    def step(i: int) -> Tensor:
        optimizer.zero_grad()
        value = loss(*batches[i])
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def training_in_cuda_graph(
    loss: Callable[..., Tensor], parameters: Iterable[Tensor], batches: list, lr: float
) -> Callable[[int], Tensor]:
    """As :func:`training`, with a compiled loss and the whole step captured, as in "CUDA semantics" of PyTorch."""
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True, capturable=True)
    loss = torch.compile(loss, fullgraph=True, dynamic=False)
    x, y = (tensor.clone() for tensor in batches[0])

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
        return value.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        value = step()

    def replay(i: int, kept: tuple = (optimizer, loss)) -> Tensor:  # a graph writes to memory that it does not hold
        x.copy_(batches[i][0])
        y.copy_(batches[i][1])
        graph.replay()
        return value

    return replay
