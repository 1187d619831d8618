"""Linear layers that read the inputs that they use: the same outputs, under every name, and as a form of ``deploy``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyro_vd as vd
from pyro_vd.sparsity import IndexedLinear


def net_of(used, bias=True, dtype=torch.float32):
    """A net that reads these of 20 inputs, and a layer after a function without a rule."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 6, bias), nn.Softmax(-1), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        net[0].weight[:, [i not in used for i in range(20)]] = 0
        net[2].weight[:, 0] = 0
    return net


@pytest.mark.parametrize("used", [(0, 3, 19), (), tuple(range(15))], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(20,), (4, 20), (2, 3, 20), (0, 20)])
def test_the_outputs_are_the_same(used, bias, shape):
    net = net_of(used, bias, torch.float64)
    net[0].weight.requires_grad_(False)
    smaller, x = vd.index_inputs(net), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(smaller(x), net(x))
    assert type(smaller[0]) is IndexedLinear and smaller[0].index.tolist() == list(used)
    assert smaller[0].columns.shape == (6, len(used)) and not smaller[0].columns.requires_grad
    assert type(smaller[2]) is nn.Linear, "a sixth of its inputs is less than a quarter"
    assert type(vd.index_inputs(net, 0.1)[2]) is IndexedLinear and type(net[0]) is nn.Linear
    smaller.load_state_dict(smaller.state_dict())


def test_masked_nets_modes_roots_and_second_names():
    layer = torch_prune.custom_from_mask(nn.Linear(8, 2), "weight", torch.arange(8).expand(2, 8) > 5).eval()
    x = torch.randn(3, 8)
    smaller = vd.index_inputs(layer)
    assert type(smaller) is IndexedLinear and not smaller.training and torch_prune.is_pruned(layer)
    torch.testing.assert_close(smaller(x), layer(x))
    net = nn.ModuleDict({"a": net_of((1,))[0]})
    net["b"] = net["a"]
    smaller = vd.index_inputs(net)
    assert smaller["a"] is smaller["b"] and type(smaller["a"]) is IndexedLinear


def test_bad_input():
    with pytest.warns(UserWarning, match=r"index_inputs: expected a Linear layer .* got \{'0': 0.0, '2': 0.167\}"):
        assert type(vd.index_inputs(net_of(range(20)))[0]) is nn.Linear
    with pytest.raises(ValueError, match="min_unused: expected"):
        vd.index_inputs(net_of(()), 1.5)
    with pytest.raises(ValueError, match=r"IndexedLinear: expected inputs of 20 features, got the shape \(2, 21\)"):
        vd.index_inputs(net_of((0, 3)))(torch.ones(2, 21))


def test_as_a_form_of_deploy():
    net, x = net_of((0, 3)), torch.randn(5, 20)
    seconds = iter([3.0, 2.0, 1.0])
    done = vd.deploy(net, x, forms=("dense", "shrunk", "indexed"), timer=lambda call: (call(), next(seconds))[1])
    assert done.form == "indexed" and type(done.net[0]) is IndexedLinear
    assert done.rows[2].elements < done.rows[1].elements
    torch.testing.assert_close(done.net(x), net(x))
    done = vd.deploy(nn.Linear(3, 2), torch.ones(1, 3), forms=("indexed", "dense"), timer=lambda call: 1.0)
    assert done.form == "dense" and done.rows[0].problem.endswith(
        "no Linear layer of the shrunk net has an unused input"
    )


@pytest.mark.parametrize("unused", ["linear1", "linear2"])
def test_in_a_layer_that_reads_the_weight_itself(unused):
    """PyTorch's fast path, which an encoder takes in eval mode without gradients, calls no Linear."""
    net = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double().eval()
    with torch.no_grad():
        getattr(net, unused).weight[:, ::2] = 0
        smaller, x = vd.index_inputs(net), torch.randn(2, 3, 8).double()
        assert type(getattr(smaller, unused)) is IndexedLinear
        assert torch.equal(getattr(smaller, unused).weight, getattr(net, unused).weight)
        torch.testing.assert_close(smaller(x), net(x))
