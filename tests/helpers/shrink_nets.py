"""Nets that ``shrink`` must follow, or leave whole, and examples of their inputs."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from helpers.paths import EXAMPLES

SPEC = importlib.util.spec_from_file_location("_networks", EXAMPLES / "_networks.py")
assert SPEC is not None and SPEC.loader is not None
networks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(networks)


class Net(nn.Module):
    """Layers by name, and a function of them as forward method."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args, **kwargs):
        return self.call(self, *args, **kwargs)


def tied():
    net = Net(
        lambda s, x: s.out(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(6, 6), b=nn.Linear(6, 6), out=nn.Linear(6, 2)
    )
    net.b.weight = net.a.weight
    return net


def separable():
    return nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6(),
        nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def dense_block():
    """Each layer reads all before it, the input too."""
    layers = {"a": nn.Conv1d(3, 4, 3, padding=1), "b": nn.Conv1d(7, 5, 3), "c": nn.Conv1d(5, 2, 1)}

    def call(s, x):
        x = torch.cat([x, torch.tanh(s.a(x))], 1)
        return s.c(F.leaky_relu(s.b(x)))

    return Net(call, **layers)


def squeeze_excite():
    def call(s, x):
        x = s.conv(x)
        gate = torch.sigmoid(s.up(F.relu(s.down(x.mean((2, 3))))))
        return s.out((x * gate[:, :, None, None]).flatten(2).sum(-1))

    return Net(call, conv=nn.Conv2d(2, 5, 3), down=nn.Linear(5, 4), up=nn.Linear(4, 5), out=nn.Linear(5, 3))


def three(call, *layers):
    """Layers named a, b, c, d."""
    return Net(call, **dict(zip("abcd", layers, strict=False)))


def attention(by_hand):
    """Heads of size 2, their number left open."""

    def call(s, x):
        query, key, value = (layer(x).view(*x.shape[:2], -1, 2).transpose(1, 2) for layer in (s.a, s.b, s.c))
        if by_hand:
            mixed = torch.softmax(query @ key.transpose(-2, -1) / 2**0.5, -1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return s.d(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))[:, 0]

    return three(call, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8, False), nn.Linear(8, 3))


IMAGE, ROW, SERIES, TOKENS = (3, 2, 7, 7), (4, 6), (3, 3, 9), (2, 5, 6)
PERCEPTRONS = {
    "no biases": lambda: nn.Sequential(nn.Linear(6, 8, False), nn.Softplus(), nn.Linear(8, 5, False)),
    "in place": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 2)),
    "prelu": lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 7), nn.PReLU(), nn.Linear(7, 2)),
    "softmax": lambda: nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 2)),
    "norms": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.LayerNorm(6),
        nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 2)
    ),
    "parametrized": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), parametrize.register_parametrization(nn.Linear(8, 8), "weight", nn.Tanh()),
        nn.ReLU(), nn.Linear(8, 2)
    ),
    "sum with the input": lambda: three(
        lambda s, x: s.c(F.relu(s.a(x)) + s.b(x) * 2.0 - x), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
    ),
    "residual": lambda: three(
        lambda s, x: s.d((h := s.a(x)) + s.c(F.silu(s.b(h)))),
        nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 2)
    ),
    "tied": tied,
    "shared": lambda: three(lambda s, x: s.b(F.relu(s.a(F.relu(s.a(x))))), nn.Linear(6, 6), nn.Linear(6, 2)),
    "used twice": lambda: three(
        lambda s, x: s.b(F.relu(s.a(x))) + s.b(torch.exp(-s.c(x).abs())),
        nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(6, 5)
    ),
    "weight read": lambda: three(
        lambda s, x: F.linear(F.softplus(s.a(x)), s.b.weight), nn.Linear(6, 5), nn.Linear(5, 2, bias=False)
    ),
    "product of a weight": lambda: three(
        lambda s, x: F.softplus(s.a(x)) @ s.b.weight.T, nn.Linear(6, 5), nn.Linear(5, 2, bias=False)
    ),
    "a part of the units": lambda: three(
        lambda s, x: s.b(F.relu(s.a(x))[:, :4]) + s.c(s.d(x)),
        nn.Linear(6, 8), nn.Linear(4, 2), nn.Linear(8, 2), nn.Linear(6, 8)
    ),
    "two outputs": lambda: three(
        lambda s, x: {"h": (h := F.relu(s.a(x))), "y": s.c(F.relu(s.b(h)))},
        nn.Linear(6, 5), nn.Linear(5, 8), nn.Linear(8, 2)
    ),
}  # fmt: skip
CONVOLUTIONS = {
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 2), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.InstanceNorm2d(4),
        nn.Conv2d(4, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.Flatten(), nn.Linear(64, 2)
    ),
    "lenet": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.AvgPool2d(2, 1, padding=1),
        nn.Tanh(), nn.Flatten(), nn.Linear(54, 8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "padded": lambda: nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.Sigmoid(), nn.Conv2d(5, 4, 3, padding="same"), nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")
    ),
    "separable": separable,
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)
    ),
    "squeeze and excite": squeeze_excite,
    "a written size": lambda: three(
        lambda s, x: s.b(F.relu(s.a(x)).view(-1, 100)), nn.Conv2d(2, 4, 3), nn.Linear(100, 2)
    ),
    "a size of the shape": lambda: three(
        lambda s, x: s.b((h := F.relu(s.a(x))).view(h.size(0), h.size(1) * 25)), nn.Conv2d(2, 4, 3), nn.Linear(100, 2)
    ),
}  # fmt: skip


def recurrent(kind, states=False, **options):
    """Between Linear layers; its output at all positions, or its last states."""
    units = options.pop("units", 5)

    def call(s, x):
        outputs, last = s.b(F.relu(s.a(x)))
        return s.d(torch.tanh(s.c(last[0][-1] if states else outputs)))

    wide = options.get("proj_size") or units * (2 if options.get("bidirectional") and not states else 1)
    return three(
        call, nn.Linear(6, 7), kind(7, units, batch_first=True, **options), nn.Linear(wide, 4), nn.Linear(4, 2)
    )


RECURRENT = {
    "lstm of positions": lambda: recurrent(nn.LSTM),
    "lstm of the last state": lambda: recurrent(nn.LSTM, True, bias=False),
    "rnn": lambda: recurrent(nn.RNN, nonlinearity="relu"),
    "gru without biases": lambda: recurrent(nn.GRU, bias=False),
    "lstm with projections": lambda: recurrent(nn.LSTM, proj_size=4),
    "lstm both ways": lambda: recurrent(nn.LSTM, bidirectional=True, bias=False),
    "gru of two layers": lambda: recurrent(nn.GRU, num_layers=2),
    "lstm with a state": lambda: three(
        lambda s, x: s.b(s.a(x, (x.new_zeros(1, len(x), 5), x.new_ones(1, len(x), 5)))[0]),
        nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)
    ),
    "lstm twice": lambda: three(
        lambda s, x: s.b(s.a(s.a(x)[0])[0]), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 2)
    ),
}  # fmt: skip
NETS = {
    "dense block": (dense_block, SERIES),
    "transposed": (lambda: nn.Sequential(
        nn.Conv1d(3, 6, 3), nn.Softplus(), nn.ConvTranspose1d(6, 5, 3, 2), nn.Sigmoid(), nn.ConvTranspose1d(5, 4, 1),
        nn.ReLU(), nn.Conv1d(4, 2, 1)), SERIES),
    "other axes": (lambda: three(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x.transpose(1, 2))).permute(0, 2, 1))).mT),
        nn.Linear(3, 8), nn.Conv1d(8, 6, 2), nn.Linear(6, 2)), SERIES),
    "volumes": (lambda: nn.Sequential(
        nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 5, 2), nn.ReLU(), nn.Conv3d(5, 2, 1)),
        (2, 2, 4, 4, 4)),
    "one example": (lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3)), (2, 7, 7)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)), TOKENS),
    "transformer": (lambda: nn.TransformerEncoderLayer(6, 2, 9, dropout=0.1, batch_first=True), TOKENS),
    "attention": (lambda: attention(False), TOKENS),
    "attention by hand": (lambda: attention(True), TOKENS),
    "gru": (lambda: three(
        lambda s, x: s.d(F.relu(s.c(s.b(s.a(x))[0]))),
        nn.Linear(6, 5), nn.GRU(5, 4, batch_first=True), nn.Linear(4, 7), nn.Linear(7, 2)), TOKENS),
    **{name: (make, TOKENS) for name, make in RECURRENT.items()},
    **{name: (make, ROW) for name, make in PERCEPTRONS.items()},
    **{name: (make, IMAGE) for name, make in CONVOLUTIONS.items()},
    **{name: (networks.NETWORKS[name], None) for name in ("resnet", "vit", "lstm", "unet", "embedding_bag")},
}  # fmt: skip
INPUTS = {"lstm": (2, 8, 8), "resnet": (2, 1, 8, 8), "vit": (2, 1, 8, 8), "unet": (2, 1, 8, 8)}
# Nets all of whose units meet a function without a rule, or more uses than zeros are left for.
NONE_GOES = {
    *("softmax", "parametrized", "tied", "shared", "sum with the input", "product of a weight"),
    *("grouped", "a written size", "lstm with a state", "lstm twice"),
}


def example(name):
    if name == "embedding_bag":
        return torch.randint(0, 200, (3, 12))
    return torch.randn(NETS[name][1] or INPUTS[name], dtype=torch.float64)
