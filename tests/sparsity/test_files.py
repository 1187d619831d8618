"""Bits by the posterior noise, files without zeros that a plain script reads, and exported programs."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyro_vd as vd
from pyro_vd.sparsity import places


@pytest.mark.parametrize("scale", [1e-4, 0.03, 0.5, 20.0])
def test_weights_on_their_grid_are_off_by_less_than_their_noise(scale):
    torch.manual_seed(0)
    loc = 3 * torch.randn(40, 30, dtype=torch.float64)
    scales = scale * torch.rand(40, 30, dtype=torch.float64)
    q = vd.DropoutNormal(loc, log_sigma2=2 * scales.log())
    report = vd.weight_bits({"w": q}, 0.0)
    (row,) = report.rows
    kept = vd.keep_masks({"w": q}, 0.0)["w"]
    noise = scales[kept].square().mean().sqrt()
    rounded = (loc[kept] / row.step).round()
    assert ((rounded * row.step - loc[kept]).abs() <= noise).all()
    assert 2 * row.step / 2 > noise or row.step == 0, "the next coarser grid is off by more"
    assert rounded.abs().max() < 2 ** (row.bits - 1) and rounded.abs().max() >= 2 ** (row.bits - 2) - 1
    assert row.kept == int(kept.sum()) and report.compression == pytest.approx(32 * 1200 / (row.kept * row.bits))


def test_bits_of_several_layers_by_hand():
    """Steps 2 * 0.5 = 1 and 2 * 0.0625 = 0.125: 9 is four bits, 0.5 = 4 steps is three; and a sign."""
    first = vd.DropoutNormal(torch.tensor([9.0, -2.0, 1e-3]), log_sigma2=2 * math.log(0.5) + 1e-6)
    second = vd.DropoutNormal(torch.tensor([0.5]), log_sigma2=2 * math.log(0.0625) + 1e-6)
    dead = vd.DropoutNormal(torch.full((4,), 1e-9), log_sigma2=0.0)
    report = vd.weight_bits({"a": first, "b": second, "c": dead})
    assert [(row.site, row.kept, row.step, row.bits) for row in report.rows] == [
        ("a", 2, 1.0, 5), ("b", 1, 0.125, 4), ("c", 0, 0.0, 0)]  # fmt: skip
    assert report.bits == pytest.approx(14 / 3) and report.compression == pytest.approx(32 * 8 / 14)
    assert str(report).splitlines()[-1].split() == ["total", "8", "3", "4.7"]
    exact = vd.DropoutNormal(torch.ones(2), log_sigma2=torch.tensor(-math.inf))
    assert vd.weight_bits({"w": exact}).rows[0].bits == 32
    assert vd.weight_bits({"a": first}, sparsity=2 / 3).rows[0].kept == 1
    with pytest.raises(ValueError, match="log_alpha_threshold: expected a number, got nan"):
        vd.weight_bits({"a": first}, math.nan)


def sparse_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 150), nn.Linear(150, 3)
    )
    with torch.no_grad():
        net[4].weight[torch.rand(net[4].weight.shape) < 0.98] = 0
        net[0].weight[2:] = 0
    net[1].running_mean.fill_(0.5)
    return net


HOST = """
import sys, torch, safetensors.torch
path = sys.argv[1]
%s
torch.save(held, sys.argv[2])
assert not [name for name in sys.modules if name.startswith(("pyro", "jax"))]
"""


def reader():
    """The plain script that the documentation of ``save_sparse`` prints, up to the net."""
    script = inspect.getdoc(vd.save_sparse).split("library::")[1].split("Args:")[0]
    lines = textwrap.dedent(script).strip().splitlines()
    assert lines.pop() == "net.load_state_dict(held)"
    return HOST % "\n".join(lines)


@pytest.mark.parametrize("masked", [False, True])
def test_a_file_without_zeros(masked, tmp_path):
    net = sparse_net()
    if masked:
        torch_prune.custom_from_mask(net[4], "weight", net[4].weight != 0)
    size = vd.save_sparse(net, tmp_path / "net.safetensors")
    assert size == (tmp_path / "net.safetensors").stat().st_size < 12_000 < 4 * 150 * 288
    state = sparse_net().state_dict()
    loaded = vd.load_sparse(tmp_path / "net.safetensors")
    subprocess.run(
        [sys.executable, "-c", reader(), str(tmp_path / "net.safetensors"), str(tmp_path / "net.pt")], check=True
    )
    for held in (loaded, torch.load(tmp_path / "net.pt")):
        assert set(held) == set(state)
        assert all(torch.equal(held[name], state[name]) and held[name].dtype == state[name].dtype for name in state)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        told = {name: more for name, shape, *more in json.loads(file.metadata()["pyro_vd"])["float32"]}
    assert told["5.weight"] == [] and told["4.weight"][0] == state["4.weight"].count_nonzero(), (
        "whole where that is less"
    )


def test_other_tensors_and_names(tmp_path):
    net = nn.ParameterDict({
        "a": nn.Parameter(torch.eye(50).bfloat16()), "none": nn.Parameter(torch.zeros(3, 40)),
        "empty": nn.Parameter(torch.zeros(0, 4)), "number": nn.Parameter(torch.tensor(0.0)),
        "places": nn.Parameter(torch.eye(9)), "sparse_values": nn.Parameter(torch.ones(1)),
        'a "b"\n': nn.Parameter(torch.eye(20)),
    })  # fmt: skip
    net.register_buffer("counts", torch.eye(30, dtype=torch.long))
    net.register_buffer("unsigned", (torch.arange(300) % 100 == 3).to(torch.uint16))
    path = tmp_path / "net.safetensors"
    vd.save_sparse(net, path)
    loaded = vd.load_sparse(path)
    assert set(loaded) == set(net.state_dict())
    for name, value in net.state_dict().items():
        found = loaded[name]
        assert torch.equal(found, value) and found.dtype == value.dtype and found.shape == value.shape
        assert found.untyped_storage().nbytes() == value.nbytes, "of its own"


def test_files_that_are_others_truncated_or_changed_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    net = sparse_net()
    vd.save_sparse(net, path)
    content = path.read_bytes()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for other in (b"", content[:20], content[:-1], content + b"x", b"a text" * 9, (tmp_path / "net.pt").read_bytes()):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="load_sparse: expected a file of save_sparse, .* another or a trunc"):
            vd.load_sparse(path)
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        told, held = file.metadata()["pyro_vd"], load_file(path)
    (at,) = (i for i, (name, *_) in enumerate(json.loads(told)["float32"]) if name == "4.weight")

    def changed(part: int, value: object) -> str:
        tensors = json.loads(told)
        tensors["float32"][at][part] = value
        return json.dumps(tensors)

    count = int(net[4].weight.count_nonzero())
    for tensors, text, problem in (
        ({"places": held["places"][:-1]}, told, "bits of places are left"),
        ({"places": held["places"][:-9]}, told, "expected [0-9]+ places below"),
        ({"places": torch.cat([held["places"], held["places"]])}, told, "bits of places are left"),
        ({"places": torch.zeros_like(held["places"])}, told, "places below"),
        ({"float32": held["float32"][:-1]}, told, "expected 3 values, got 2"),
        ({"float32": torch.cat([held["float32"], torch.ones(1)])}, told, "1 values of float32 are left"),
        ({"float32": None}, told, "'float32'"),
        ({"places": None}, told, "'places'"),
        ({}, told[:-1], "metadata"),
        ({}, "[1, 2]", "metadata"),
        ({}, told.replace("float32", "floating"), "floating"),
        ({}, changed(2, count + 1), "'4.weight'|values|places"),
        ({}, changed(1, [1, 40]), "'4.weight': expected .* places below 40"),
        ({}, changed(1, [-3, -40]), "metadata"),
        ({}, changed(3, "two"), "metadata"),
        ({}, changed(3, -1), "metadata"),
    ):
        kept = {name: tensor for name, tensor in (held | tensors).items() if tensor is not None}
        save_file(kept, path, {"pyro_vd": text})
        with pytest.raises(ValueError, match=f"(?s)load_sparse: expected .*{problem}.*; write it again"):
            vd.load_sparse(path)
    with pytest.raises(FileNotFoundError):
        vd.load_sparse(tmp_path / "none")


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.eye(3).to_sparse())


@pytest.mark.parametrize(
    ("net", "error", "text"),
    [
        ({"weight": torch.ones(1)}, TypeError, "expected a torch module, got dict; pass the net"),
        (nn.Linear(2, 2, device="meta"), ValueError, "'weight': expected values, got a tensor on the meta device"),
        (
            nn.LazyLinear(2),
            TypeError,
            "'weight': expected a dense tensor, got .*UninitializedP.*; write torch.save",
        ),
        (
            Sparse(),
            TypeError,
            "'w': expected a dense tensor, got torch.*coo",
        ),
    ],
    ids=["no module", "meta", "lazy", "sparse"],
)
def test_what_cannot_be_written_is_refused(net, error, text, tmp_path):
    with pytest.raises(error, match=f"save_sparse: {text}"):
        vd.save_sparse(net, tmp_path / "net.safetensors")
    with pytest.raises(OSError, match="save_sparse: expected a path that can be written, got '.*none"):
        vd.save_sparse(nn.Linear(2, 2), tmp_path / "none" / "net.safetensors")
    assert not list(tmp_path.iterdir())


def coded_by_hand(zeros: list[int], k: int) -> str:
    """The code of Rice, bit by bit."""
    high = "".join("0" * (zero >> k) + "1" for zero in zeros)
    return high + "".join(str(zero >> bit & 1) for zero in zeros for bit in range(k))


@pytest.mark.parametrize("zeros", [[], [0], [7], [0, 0, 0, 1], [1000, 3, 0, 512], [5, 6, 4, 7, 90], [2**33]], ids=str)
def test_places_are_coded_in_the_fewest_bits_of_every_k(zeros):
    found = (torch.tensor(zeros, dtype=torch.long) + 1).cumsum(0) - 1
    k, bits = places.encode(found)
    assert "".join(map(str, bits.tolist())) == coded_by_hand(zeros, k)
    assert len(bits) == min(len(zeros) * (1 + k) + sum(zero >> k for zero in zeros) for k in range(40))
    size = int(found.max()) + 10 if zeros else 10
    other = torch.tensor([1, 0, 1], dtype=torch.uint8)
    decoded, used = places.decode(torch.cat([bits, other]), size, len(zeros), k)
    assert torch.equal(decoded, found) and used == len(bits)
    assert torch.equal(places.unpack(places.pack(bits))[: len(bits)], bits)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9, 0.985, 0.999])
def test_a_file_is_close_to_the_entropy_of_its_places(share, tmp_path):
    """Within 3 % and a header of 200 bytes, of places at random, at any share of zeros."""
    torch.manual_seed(0)
    net = nn.Linear(784, 300, bias=False)
    with torch.no_grad():
        net.weight[torch.rand(net.weight.shape) < share] = 0
    kept = net.weight.count_nonzero().item() / net.weight.numel()
    entropy = -kept * math.log2(kept) - (1 - kept) * math.log2(1 - kept)
    bound = net.weight.numel() * (entropy + 32 * kept) / 8
    assert bound < vd.save_sparse(net, tmp_path / "net.safetensors") < 1.03 * bound + 200


def test_the_header_of_a_net_of_three_layers_is_short(tmp_path):
    net = nn.Sequential(*(nn.Linear(30, 30) for _ in range(3)))
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(torch.eye(30))
    vd.save_sparse(net, tmp_path / "net.safetensors")
    assert int.from_bytes((tmp_path / "net.safetensors").read_bytes()[:8], "little") < 340


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_pruned_and_shrunk_net_is_exported_for_any_batch():
    net = sparse_net().eval()
    x = torch.randn(4, 1, 8, 8)
    for one in (net, vd.shrink(net, x)):
        exported = torch.export.export(one, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(exported.module()(x[:3]), net(x[:3]))
