"""Bits by the posterior noise, files without zeros that a plain script reads, and exported programs."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyro_vd as vd
from pyro_vd.sparsity import files


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
    held = load_file(tmp_path / "net.safetensors")
    assert "5.weight" in held and held["4.weight.sparse_gaps.150x288"].dtype == torch.uint8, "dense where that is less"


def test_other_tensors_and_bad_files(tmp_path):
    net = nn.ParameterDict({
        "a": nn.Parameter(torch.eye(50).bfloat16()), "none": nn.Parameter(torch.zeros(3, 40)),
        "empty": nn.Parameter(torch.zeros(0, 4)), "number": nn.Parameter(torch.tensor(0.0)),
    })  # fmt: skip
    net.register_buffer("counts", torch.eye(30, dtype=torch.long))
    path = tmp_path / "net.safetensors"
    vd.save_sparse(net, path)
    loaded = vd.load_sparse(path)
    for name, value in net.state_dict().items():
        assert (
            torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        )
    held = load_file(path)
    gaps = "a.sparse_gaps.50x50"
    for change, text in (
        (
            {gaps: held[gaps][1:]},
            "'a': expected as many indices below 2500 as values, got 49 and 50",
        ),
        ({gaps: held[gaps] + 1}, "'a': expected as many indices below 2500 as values"),
        ({"a.sparse_values": None}, r"expected 'a' in parts, got none of \['a.sparse_values'\]"),
        ({gaps: None}, "expected 'a' in parts, got values without"),
        ({gaps: None, "a.sparse_gaps.50xx50": held[gaps]}, "expected 'a' in parts, got values without"),
        ({gaps: None, "a.sparse_gaps": held[gaps]}, r"expected 'a' in parts, got none of \['a.sparse_shape'\]"),
    ):
        save_file({n: t for n, t in (held | change).items() if t is not None}, path)
        with pytest.raises(ValueError, match=text):
            vd.load_sparse(path)
    for name in ("sparse_values", "sparse_shape", "sparse_gaps", "sparse_nibbles"):
        bad = nn.Module()
        bad.register_parameter(name, nn.Parameter(torch.ones(1)))
        with pytest.raises(ValueError, match=f"save_sparse: expected names that do not end .*, got 'x.{name}'"):
            vd.save_sparse(nn.ModuleDict({"x": bad}), path)
    bad = nn.ModuleDict({"sparse_gaps": nn.ParameterList([nn.Parameter(torch.ones(1))])})
    with pytest.raises(ValueError, match="got 'x.sparse_gaps.0'"):
        vd.save_sparse(nn.ModuleDict({"x": bad}), path)


@pytest.mark.parametrize("most", [255, 65535])
def test_gaps_that_one_number_cannot_say(most):
    """Around the largest number, its multiples, and none at all, between elements, before them and behind."""
    dtype = {255: torch.uint8, 65535: torch.uint16}[most]
    for zeros in ([0], [most - 1], [most], [most + 1, 0, 2 * most, 2 * most - 1], [3 * most], [0, 1, most], []):
        places = (torch.tensor(zeros, dtype=torch.long) + 1).cumsum(0) - 1
        gaps = files._gaps(places, dtype)
        assert gaps.dtype == dtype and len(gaps) == sum(zero // most + 1 for zero in zeros)
        assert torch.equal(files._places(gaps), places)


def test_sparser_layers_have_two_bytes_a_gap_and_files_of_indices_are_read(tmp_path):
    net = nn.Linear(1000, 200)
    with torch.no_grad():
        net.weight.copy_(torch.where(torch.arange(200_000) % 777 == 5, 1.5, 0.0).reshape(200, 1000))
    path = tmp_path / "net.safetensors"
    vd.save_sparse(net, path)
    held = load_file(path)
    gaps = held.pop("weight.sparse_gaps.200x1000")
    assert gaps.dtype == torch.uint16 and len(gaps) == net.weight.count_nonzero()
    assert torch.equal(vd.load_sparse(path)["weight"], net.weight)
    held["weight.sparse_shape"] = torch.tensor([200, 1000])
    for places in ({"weight.sparse_indices": net.weight.flatten().nonzero()[:, 0].int()}, {"weight.sparse_gaps": gaps}):
        save_file(held | places, path)
        loaded = vd.load_sparse(path)
        assert torch.equal(loaded["weight"], net.weight) and set(loaded) == {"weight", "bias"}, "as 0.1.0 wrote it"


def test_a_header_is_short_and_a_tensor_is_dense_where_its_header_costs_more(tmp_path):
    net = nn.Linear(1000, 10)
    with torch.no_grad():
        net.weight[:, 10:] = 0
        net.bias[1:] = 0
    path = tmp_path / "net.safetensors"
    vd.save_sparse(net, path)
    assert set(load_file(path)) == {"bias", "weight.sparse_values", "weight.sparse_gaps.10x1000"}
    assert int.from_bytes(path.read_bytes()[:8], "little") < 250


def test_a_file_is_close_to_the_entropy_of_its_places(tmp_path):
    torch.manual_seed(0)
    net = nn.Linear(784, 300, bias=False)
    with torch.no_grad():
        net.weight[torch.rand(net.weight.shape) < 0.985] = 0
    share = net.weight.count_nonzero().item() / net.weight.numel()
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    bound = net.weight.numel() * (entropy + 32 * share) / 8
    assert bound < vd.save_sparse(net, tmp_path / "net.safetensors") < 1.1 * bound


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_pruned_and_shrunk_net_is_exported_for_any_batch():
    net = sparse_net().eval()
    x = torch.randn(4, 1, 8, 8)
    for one in (net, vd.shrink(net, x)):
        exported = torch.export.export(one, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(exported.module()(x[:3]), net(x[:3]))
