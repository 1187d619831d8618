"""Layers whose outputs are not those of their weight alone stay as they are; layers without weights; missing parts."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
from torch import nn

import pyro_vd as vd


def double_output(layer):
    layer.register_forward_hook(lambda module, args, output: 2 * output)


def double_input(layer):
    layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def own_forward(layer):
    layer.forward = types.MethodType(lambda self, x: 2 * nn.Linear.forward(self, x), layer)


@pytest.mark.parametrize("change", [double_output, double_input, own_forward], ids=lambda one: one.__name__)
@pytest.mark.parametrize("replace", [lambda net: vd.to_csr(net, 0.5), vd.index_inputs], ids=["to_csr", "index_inputs"])
def test_the_outputs_are_those_of_the_net(replace, change):
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight[:, 2:] = 0.0
        net[1].weight[:, 1:] = 0.0
    change(net[0])
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    made = replace(net)
    torch.testing.assert_close(made(x), net(x))
    assert type(made[0]) is nn.Linear and type(made[1]) is not nn.Linear


def test_a_layer_without_inputs_and_inputs_of_another_size():
    with warnings.catch_warnings():  # "Initializing zero-element tensors is a no-op"
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2))
    with torch.no_grad():
        net[1].weight.zero_()
    made = vd.to_csr(net)
    torch.testing.assert_close(made(torch.zeros(4, 0)), net(torch.zeros(4, 0)))
    with pytest.raises(ValueError, match=r"CSRLinear: expected inputs of 3 features, got shape \(0, 6\)"):
        made[1](torch.zeros(0, 6))


def test_no_weights_and_one_threshold_are_named():
    with pytest.raises(ValueError, match="guide: expected the posterior of at least one weight, got none"):
        vd.sparsity_report({})
    bnn = vd.BayesianModule(nn.Linear(3, 1), vd.ImproperLogUniform())
    posterior = {"net.weight": vd.DropoutNormal(torch.ones(1, 3), log_sigma2=0.0)}
    with pytest.raises(ValueError, match=r"thresholds: expected numbers, got 3.0; write thresholds=\[1.0"):
        vd.threshold_curve(bnn, posterior, lambda net: 0.0, 3.0)
