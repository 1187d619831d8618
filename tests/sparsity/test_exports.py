"""Pruned and shrunk nets are exported for any batch by PyTorch's and JAX's own exporters, as docs/deploy.md says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vd as vd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def convolutional():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 9), nn.ReLU(),
        nn.Linear(9, 3),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight[4:] = 0
        net[5].weight[3:] = 0
        net[5].weight[:, :9] = 0
    return net.eval()


def transformer():
    """Rows of an image as tokens; two of four heads and most of the hidden units are dead."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten())
    with torch.no_grad():
        for layer in net[1].layers:
            layer.self_attn.out_proj.weight[:, 2:6] = 0
            layer.linear1.weight[:25] = 0
    return net.append(nn.Linear(64, 3)).eval()


def indexed():
    """A layer of a part of the inputs, and one of compressed rows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 3))
    with torch.no_grad():
        net[1].weight[:, 10:] = 0
    return net.eval()


NETS = {"convolutional": convolutional, "transformer": transformer, "indexed": indexed}


def deployed(name):
    """The net, and what is exported, with its examples."""
    net, x = NETS[name](), torch.randn(4, 1, 8, 8)
    smaller = vd.index_inputs(net) if name == "indexed" else vd.shrink(net, x)
    assert sum(p.numel() for p in smaller.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())
    return net, smaller, x


@pytest.mark.parametrize("name", NETS)
def test_onnx_of_any_batch(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, smaller, x = deployed(name)
    torch.onnx.export(
        smaller, (x,), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        x = torch.randn(batch, 1, 8, 8)
        (ours,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(ours, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_exported_programs_of_any_batch(name, tmp_path):
    net, smaller, x = deployed(name)
    program = torch.export.export(smaller, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    for batch in (2, 7):
        x = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_weights_in_eight_bits(name):
    """Off by a rounding to 127 steps of the largest weight of a row, on each of the layers on the way."""
    quantization = pytest.importorskip("torchao.quantization")
    net, smaller, _ = deployed(name)
    small8 = copy.deepcopy(smaller)
    quantization.quantize_(small8, quantization.Int8WeightOnlyConfig())
    x = torch.randn(50, 1, 8, 8)
    with torch.no_grad():
        off = (small8(x) - net(x)).abs().max() / net(x).abs().max()
    assert 0 < off < 0.05 or name == "indexed"
