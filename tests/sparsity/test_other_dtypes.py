"""Sparse layers under autocast, and files of tensors of one byte."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyro_vd as vd


@pytest.fixture
def layers():
    net = nn.Sequential(nn.Linear(6, 4))
    with torch.no_grad():
        net[0].weight[:, :5] = 0
    return net, vd.to_csr(net, min_sparsity=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sparse_layer_under_autocast_has_the_type_of_a_linear_one(layers, dtype):
    dense, sparse = layers
    x = torch.randn(2, 6)
    with torch.autocast("cpu", dtype=dtype):
        expected, found = dense(x), sparse(x.to(dtype))
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("half", ["inputs", "both"])
def test_half_precision_by_itself_is_refused_with_the_cure(layers, half):
    sparse = layers[1].bfloat16() if half == "both" else layers[1]
    with pytest.raises(TypeError, match=r"of one dtype, float32 or float64, got torch.bfloat16 and.*write .float\(\)"):
        sparse(torch.ones(2, 6, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bfloat16, torch.int8, torch.bool]
)
def test_a_tensor_of_any_type_comes_back_bit_for_bit(tmp_path, dtype):
    pytest.importorskip("safetensors")
    tensor = torch.zeros(16, 16)
    tensor[3], tensor[9, 1] = 2.0, -1.0
    net = nn.Module()
    net.register_buffer("w", tensor.to(dtype))
    size = vd.save_sparse(net, tmp_path / "net.safetensors")
    found = vd.load_sparse(tmp_path / "net.safetensors")["w"]
    assert found.dtype == dtype and found.shape == (16, 16)
    assert found.flatten().view(torch.uint8).tolist() == net.w.flatten().view(torch.uint8).tolist()
    assert size < 300 + 17 * found.element_size()
