"""Layers of compressed rows, and the choice between the forms of a net; times are given, never measured."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyro_vd as vd
from pyro_vd.sparsity import CSRLinear


def sparse_net(dtype=torch.float32):
    """Two layers with more than 90 % zeros, two units of the first dead; a dense last one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20, bias=False), nn.ReLU(), nn.Linear(20, 3))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[torch.rand(layer.weight.shape) < 0.97] = 0
        net[0].weight[range(30), range(30)] = 1.0  # no other unit is dead
        net[2].weight[[i % 20 for i in range(30)], range(30)] = 1.0
        net[0].weight[4] = 0
        net[2].weight[:, 4] = 0
        net[2].weight[:, 6] = 0
    return net.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (7, 40), (2, 3, 40), (0, 40)])
def test_compressed_rows_are_the_same_function(shape, dtype):
    net = sparse_net(dtype)
    sparse = vd.to_csr(net)
    assert [type(layer) for layer in sparse[::2]] == [CSRLinear, CSRLinear, nn.Linear]
    assert type(net[0]) is nn.Linear, "the net is left as it was"
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), net(x))
    assert torch.equal(sparse[0].weight, net[0].weight) and len(sparse[0].values) == net[0].weight.count_nonzero()
    nbytes = [sum(t.nbytes for t in one.state_dict().values()) for one in (sparse, net)]
    assert nbytes[0] < 0.4 * nbytes[1]


def test_compressed_rows_are_copied_saved_and_moved():
    sparse = vd.to_csr(sparse_net())
    x = torch.randn(3, 40)
    other = vd.to_csr(sparse_net())
    other[0].values.zero_()
    other.load_state_dict(sparse.state_dict())
    for copied in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), other):
        assert torch.equal(copied(x), sparse(x))
    torch.testing.assert_close(copy.deepcopy(sparse).double()(x.double()).float(), sparse(x))


def test_which_layers_are_replaced():
    net = sparse_net()
    zeros = [1 - layer.weight.count_nonzero().item() / layer.weight.numel() for layer in net[:4:2]]
    assert zeros[0] > zeros[1]
    assert [type(layer) for layer in vd.to_csr(net, zeros[0])[:4:2]] == [CSRLinear, nn.Linear]
    assert [type(layer) for layer in vd.to_csr(net, zeros[1])[:4:2]] == [CSRLinear, CSRLinear]
    with pytest.warns(
        UserWarning, match="to_csr: expected a Linear layer with a share of zeros of 1 or more, got {'0': "
    ):
        assert type(vd.to_csr(net, 1.0)[0]) is nn.Linear
    assert type(vd.to_csr(net[0])) is CSRLinear, "a layer alone"
    assert [type(layer) for layer in vd.to_csr(net, 0.0)[::2]] == [CSRLinear] * 3
    for share, kind in ((1.5, ValueError), (-1, ValueError), (math.nan, ValueError), ("0.9", TypeError)):
        with pytest.raises(kind, match="min_sparsity: expected a"):
            vd.to_csr(net, share)
    masked = sparse_net()
    torch_prune.custom_from_mask(masked[4], "weight", torch.zeros(3, 20))
    sparse = vd.to_csr(masked)
    assert type(sparse[4]) is CSRLinear and len(sparse[4].values) == 0 and torch_prune.is_pruned(masked)


def test_shared_layers_and_layers_that_others_read():
    net = sparse_net()
    net.append(net[0])
    sparse = vd.to_csr(nn.ModuleList([net[0], net[0]]))
    assert sparse[0] is sparse[1] and type(sparse[0]) is CSRLinear
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        layer.linear1.weight[1:] = 0
        layer.self_attn.out_proj.weight.zero_()
    sparse, x = vd.to_csr(layer), torch.randn(2, 5, 8)
    assert type(sparse.linear1) is CSRLinear
    torch.testing.assert_close(sparse(x), layer(x))
    with torch.no_grad():  # the fast path reads the weights of the layers
        torch.testing.assert_close(sparse(x), layer(x))
    half = nn.Linear(4, 2).bfloat16()
    with torch.no_grad():
        half.weight.zero_()
    with pytest.warns(UserWarning, match="got {}; nothing is replaced"):
        assert type(vd.to_csr(half)) is nn.Linear


def times(*seconds):
    given = iter(seconds)
    return lambda call: (call(), next(given))[1]


@pytest.mark.parametrize("order", list(itertools.permutations([1e-3, 2e-3, 3e-3]))[::2])
def test_the_fastest_form_is_returned_with_what_was_measured(order):
    forms = ("dense", "shrunk", "csr")
    net, x = sparse_net(), torch.randn(5, 40)
    done = vd.deploy(net, x, forms=forms, timer=times(*order))
    assert done.form == forms[order.index(1e-3)]
    assert [row.milliseconds for row in done.rows] == pytest.approx([1e3 * one for one in order])
    assert [row.form for row in done.rows] == list(forms)
    torch.testing.assert_close(done.net(x), net(x))
    assert not done.net.training and net.training
    kinds = {"dense": (nn.Linear, 30), "shrunk": (nn.Linear, 28), "csr": (CSRLinear, 28)}
    assert (type(done.net[0]), done.net[0].out_features) == kinds[done.form]
    dense, shrunk, csr = done.rows
    assert dense.elements == sum(p.numel() for p in net.parameters()) > shrunk.elements
    assert dense.bytes == 4 * dense.elements and csr.bytes < shrunk.bytes < dense.bytes
    assert str(done).splitlines()[1 + order.index(1e-3)].endswith("fastest")


def test_without_a_timer_the_calls_are_timed(monkeypatch):
    import importlib

    monkeypatch.setattr(importlib.import_module("pyro_vd.sparsity.deploy"), "MIN_RUN_TIME", 1e-4)
    done = vd.deploy(sparse_net(), torch.randn(5, 40), forms=("dense", "csr"))
    assert all(0 < row.milliseconds < 1e5 for row in done.rows)
    assert done.form == min(done.rows, key=lambda row: row.milliseconds).form


def test_forms_that_do_not_work_are_said_and_not_taken():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    done = vd.deploy(net, torch.randn(2, 4), forms=("csr", "dense"), timer=times(1.0))
    assert done.form == "dense" and "no Linear layer of the shrunk net" in done.rows[0].problem
    assert math.isnan(done.rows[0].milliseconds) and "nan" not in str(done) and "no Linear layer" in str(done)

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(ValueError, match="deploy: expected a form that works, got .*dense: outputs up to .* apart"):
        vd.deploy(Noise(), torch.randn(2, 4), forms=("dense",), timer=times(1.0))
    for forms in (("dense", "onnx"), (), "dense"):
        with pytest.raises(ValueError, match="forms: expected several of"):
            vd.deploy(net, torch.randn(2, 4), forms=forms)
    with pytest.raises(ValueError, match="deploy: expected example_inputs that the net takes"):
        vd.deploy(net, torch.randn(2, 5))


def test_masked_nets_are_deployed_with_plain_weights():
    net = torch_prune.l1_unstructured(nn.Linear(10, 10), "weight", 0.95)
    done = vd.deploy(net, torch.randn(2, 10), forms=("dense", "csr"), timer=times(2.0, 1.0))
    assert type(done.net) is CSRLinear and torch_prune.is_pruned(net)
    x = torch.randn(2, 10)
    torch.testing.assert_close(done.net(x), net(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
def test_the_compiled_form():
    net, x = sparse_net(), torch.randn(5, 40)
    done = vd.deploy(net, x, timer=times(2.0, 2.0, 2.0, 2.0, 1.0))
    assert done.form == "compiled", [row.problem for row in done.rows]
    torch.testing.assert_close(done.net(x), net(x))
