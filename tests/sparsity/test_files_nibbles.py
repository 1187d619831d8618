"""Half a byte for a gap where few zeros lie between: close to the entropy, and read by the plain script."""

from __future__ import annotations

import inspect
import math
import textwrap

import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.sparsity import files

pytest.importorskip("safetensors.torch")
safetensors = pytest.importorskip("safetensors")


@pytest.mark.parametrize("zeros", [[], [0], [14], [15], [16, 0], [30, 31, 29], [0, 45, 1]], ids=str)
def test_gaps_around_the_largest_number(zeros):
    places = (torch.tensor(zeros, dtype=torch.long) + 1).cumsum(0) - 1
    gaps = files._gaps(places, most=15)
    assert gaps.max().item() <= 15 if zeros else not len(gaps)
    packed = files._paired(gaps)
    assert len(packed) == math.ceil(sum(zero // 15 + 1 for zero in zeros) / 2) and packed.dtype == torch.uint8
    assert torch.equal(files._places(packed, paired=True), places)


@pytest.mark.parametrize(("share", "part"), [(0.9, "nibbles"), (0.6, "nibbles"), (0.98, "gaps")])
def test_a_file_is_close_to_the_entropy_of_its_places(share, part, tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(784, 77, bias=False)
    with torch.no_grad():
        layer.weight[torch.rand(layer.weight.shape) < share] = 0
    path = tmp_path / "net.safetensors"
    size = vd.save_sparse(layer, path)
    kept = layer.weight.count_nonzero().item() / layer.weight.numel()
    entropy = -kept * math.log2(kept) - (1 - kept) * math.log2(1 - kept)
    bound = layer.weight.numel() * (entropy + 32 * kept) / 8
    assert bound < size < 1.1 * bound
    assert f"weight.sparse_{part}.77x784" in safetensors.torch.load_file(path)
    assert torch.equal(vd.load_sparse(path)["weight"], layer.weight)
    state: dict = {
        "safetensors": safetensors,
        "torch": torch,
        "path": path,
        "net": nn.Linear(784, 77, bias=False),
    }
    script = (inspect.getdoc(vd.save_sparse) or "").split("::\n")[1].split("Args:")[0]
    exec(textwrap.dedent(script), state)  # noqa: S102  the plain script
    assert torch.equal(state["net"].weight, layer.weight)
