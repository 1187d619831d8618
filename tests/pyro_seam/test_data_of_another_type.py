"""Data of a type that a network cannot take are named; those that it can take are not, whatever else has failed."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd

NETS = {
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "convolution": (lambda: nn.Conv2d(4, 3, 1), (2, 4, 5, 5)),
    "recurrent": (lambda: nn.LSTM(4, 3), (2, 3, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, dropout=0.0), (2, 3, 4)),
    "cell": (lambda: nn.GRUCell(4, 3), (2, 4)),
    "norms": (lambda: nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4), nn.Linear(4, 1)), (2, 4)),
}
TYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.float16, torch.bfloat16)
TYPES += (torch.complex64,)


def random(net: nn.Module) -> vd.BayesianModule:
    return vd.BayesianModule(net, dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("name", NETS)
def test_a_type_that_a_layer_cannot_take_is_named(name):
    make, shape = NETS[name]
    bnn = random(make())
    for dtype in TYPES:
        if name == "norms" and dtype in (torch.float16, torch.bfloat16):
            continue  # LayerNorm takes them
        with pytest.raises(
            TypeError, match=rf"0 .*got a tensor of {dtype}, parameters are of torch.float32; write x.to"
        ):
            bnn(torch.ones(shape).to(dtype))


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float32, torch.float16])
def test_numbers_that_are_no_indices(layer, dtype):
    with pytest.raises(TypeError, match=rf"got a tensor of {dtype}, which are no indices; write x.long\(\)"):
        random(layer(9, 4))(torch.ones(2, 3).to(dtype))


def test_indices_are_not_blamed_for_the_types_of_other_tensors():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.mixed = nn.Embedding(9, 4), torch.ones(4, 3, dtype=torch.float64)

        def forward(self, x):
            return self.embedding(x) @ self.mixed

    with pytest.raises(RuntimeError, match="Double|double"):
        random(Words())(torch.ones(2, 3, dtype=torch.int64))
