"""Common networks whose weights are not those of ``torch.nn``: each with an input, and its weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


class TransposedLinear(nn.Module):
    """A weight of shape (in, out), as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight, self.bias = matrix(inputs, outputs), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Graph(nn.Module):
    """Two graph convolutions over a fixed graph, with a helper function and a weight for the node itself."""

    def __init__(self):
        super().__init__()
        self.message, self.root, self.attention = matrix(4, 4), matrix(2, 4), nn.Parameter(torch.ones(1, 4))
        self.register_buffer("adjacency", torch.eye(5).roll(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        neighbours = self.adjacency @ product(x * self.attention, self.message)
        return F.linear(torch.relu(neighbours) + x, self.root)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(x, weight)


class Experts(nn.Module):
    """A mixture of experts whose matrices are stacked."""

    def __init__(self, batched: bool = True):
        super().__init__()
        self.gate, self.up, self.down, self.batched = matrix(3, 4), matrix(3, 4, 6), matrix(3, 6, 4), batched

    def forward(self, x: Tensor) -> Tensor:
        shares = F.linear(x, self.gate).softmax(-1)
        if self.batched:
            hidden = torch.einsum("bi,eio->beo", x, self.up).relu()
            return (torch.einsum("beo,eoi->bei", hidden, self.down) * shares[..., None]).sum(1)
        outputs = [(x @ up).relu() @ down for up, down in zip(self.up, self.down, strict=True)]
        return (torch.stack(outputs, 1) * shares[..., None]).sum(1)


class StandardConv(nn.Module):
    """A convolution whose weight is standardised, with a gain for every channel."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.kernel, self.gain = matrix(outputs, inputs, 3, 3), nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def standardised(self) -> Tensor:
        mean, deviation = self.kernel.mean((1, 2, 3), keepdim=True), self.kernel.std((1, 2, 3), keepdim=True)
        return self.gain * (self.kernel - mean) / (deviation + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised(), padding=1)


class StandardNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(StandardConv(1, 3), nn.ReLU(), StandardConv(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class KAN(nn.Module):
    """A Kolmogorov-Arnold layer: weights of splines in a property, with a gain of two dimensions."""

    def __init__(self):
        super().__init__()
        self.base, self.splines, self.scaler = matrix(2, 3), matrix(2, 3, 5), nn.Parameter(torch.ones(2, 3))
        self.register_buffer("grid", torch.linspace(-1, 1, 5))

    @property
    def scaled(self) -> Tensor:
        return self.splines * self.scaler.unsqueeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2))
        return F.linear(F.silu(x), self.base) + F.linear(bumps.flatten(1), self.scaled.reshape(2, -1))


class Tokens(nn.Module):
    """A transformer with a class token, free positions, and positions of an embedding."""

    def __init__(self):
        super().__init__()
        self.words, self.place = nn.Embedding(7, 8), nn.Embedding(6, 8)
        self.token, self.offsets = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 6, 8))
        self.qkv, self.out = matrix(8, 24), nn.Linear(8, 2)

    def forward(self, words: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(words), -1, -1), self.words(words)], 1) + self.offsets
        x = x + self.place(torch.arange(x.shape[1]))
        q, k, v = (x @ self.qkv).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])


class ByRange(nn.Module):
    """Words and positions, both of an ``nn.Embedding``."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(9, 4), nn.Embedding(8, 4), nn.Linear(4, 2)
        self.register_buffer("position_ids", torch.arange(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x) + self.places(torch.arange(x.shape[1], device=x.device).unsqueeze(0)))


class Lists(nn.Module):
    """Matrices in a list and in a dictionary, the last in a local function."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.ParameterList([matrix(4, 4) for _ in range(2)])
        self.named = nn.ParameterDict({"out": matrix(2, 4)})

    def forward(self, x: Tensor) -> Tensor:
        def head(y: Tensor) -> Tensor:
            return y @ self.named["out"].T

        for weight in self.matrices:
            x = torch.tanh(x.mm(weight))
        return head(x)


class LowRank(nn.Module):
    """A frozen matrix and two factors that change it."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.randn(4, 4), requires_grad=False)
        self.down, self.up = matrix(2, 4), matrix(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.frozen) + F.linear(F.linear(x, self.down), self.up)


class DeepSet(nn.Module):
    """A sum over the elements of a set between two subclasses of Linear."""

    class Dense(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    def __init__(self):
        super().__init__()
        self.inner, self.outer = self.Dense(4, 5), self.Dense(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).sum(1))


class Mixer(nn.Module):
    """Matrices over tokens and over channels, one on the left of the product."""

    def __init__(self):
        super().__init__()
        self.tokens, self.channels, self.norm = matrix(5, 5), matrix(4, 4), nn.LayerNorm((5, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.einsum("ts,bsc->btc", self.tokens, self.norm(x))
        return torch.tensordot(x, self.channels, dims=([-1], [0]))


class TiedHead(nn.Module):
    """A head of its own module that uses the weight of the embedding."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden = nn.Embedding(7, 4), TransposedLinear(4, 4)

    def forward(self, words: Tensor) -> Tensor:
        return F.linear(self.hidden(self.words(words)), self.words.weight)


@dataclass(frozen=True)
class PlainNet:
    """A network: how to make it and its input, the names of its weights, and what it needs to be sampled locally.

    ``shared`` are the sites that it uses twice; ``warns`` the operation that draws weights once.
    """

    make: Callable[[], nn.Module]
    data: Callable[[], Tensor]
    weights: tuple[str, ...]
    shared: tuple[str, ...] = ()
    warns: str | None = None


WORDS = torch.tensor([[1, 2, 3, 4, 5], [2, 0, 6, 3, 1]])

PLAIN_NETS = {
    "transposed": PlainNet(
        lambda: nn.Sequential(TransposedLinear(4, 3), nn.Tanh(), TransposedLinear(3, 2)),
        lambda: torch.randn(5, 4), ("0.weight", "2.weight")),
    "graph": PlainNet(Graph, lambda: torch.randn(5, 4), ("message", "root")),
    "experts": PlainNet(Experts, lambda: torch.randn(5, 4), ("gate", "up", "down")),
    "experts in a loop": PlainNet(lambda: Experts(False), lambda: torch.randn(5, 4), ("gate", "up", "down")),
    "standardised": PlainNet(
        StandardNet, lambda: torch.randn(2, 1, 5, 5), ("layers.0.kernel", "layers.2.kernel"), warns="mean"),
    "kan": PlainNet(KAN, lambda: torch.randn(5, 3), ("base", "splines")),
    "tokens": PlainNet(Tokens, lambda: WORDS, ("qkv", "words.weight", "out.weight")),
    "lists": PlainNet(Lists, lambda: torch.randn(5, 4), ("matrices.0", "matrices.1", "named.out")),
    "low rank": PlainNet(LowRank, lambda: torch.randn(5, 4), ("down", "up")),
    "deep set": PlainNet(DeepSet, lambda: torch.randn(5, 3, 4), ("inner.weight", "outer.weight")),
    "mixer": PlainNet(Mixer, lambda: torch.randn(2, 5, 4), ("tokens", "channels")),
    "tied": PlainNet(TiedHead, lambda: WORDS, ("words.weight", "hidden.weight"), shared=("net.words.weight",)),
}  # fmt: skip
