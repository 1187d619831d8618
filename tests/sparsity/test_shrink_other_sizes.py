"""A smaller net is the net at other inputs too: of another length, after an example that does not tell units apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyro_vd as vd
from helpers.shrink_nets import Net


def with_dead_units(net, bias=1.0):
    """The first three units of the first layer give ``relu(bias)``."""
    with torch.no_grad():
        net.a.weight[:3], net.a.bias[:3] = 0.0, bias
    return net.double().eval()


@pytest.mark.parametrize("bias", [1.0, -1.0])
@pytest.mark.parametrize("reduction", ["sum", "mean", "amax"])
def test_a_reduction_over_positions_at_another_length(reduction, bias):
    """A sum of ones is the length; a mean and a maximum of them are one, and a sum of zeros is zero."""
    net = Net(lambda s, x: s.b(getattr(F.relu(s.a(x)), reduction)(1)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    net = with_dead_units(net, bias)
    smaller, x = vd.shrink(net, torch.randn(2, 3, 4).double()), torch.randn(2, 10, 4).double()
    torch.testing.assert_close(smaller(x), net(x))
    assert smaller.a.out_features == (6 if reduction == "sum" and bias > 0 else 3)


def test_a_sum_over_an_image_of_another_size():
    net = Net(lambda s, x: s.b(F.relu(s.a(x)).sum((2, 3))), a=nn.Conv2d(1, 6, 3), b=nn.Linear(6, 2))
    net = with_dead_units(net)
    smaller, x = vd.shrink(net, torch.randn(2, 1, 6, 6).double()), torch.randn(2, 1, 9, 7).double()
    torch.testing.assert_close(smaller(x), net(x))


def test_a_table_that_is_the_weight_of_an_inner_layer_stays_whole():
    """Rows of it that no unit reads are words."""
    net = Net(lambda s, i: s.b(F.relu(s.a(s.table(i)))), table=nn.Embedding(7, 4), a=nn.Linear(4, 7), b=nn.Linear(7, 2))
    net.a.weight = net.table.weight
    net.double().eval()
    with torch.no_grad():
        net.b.weight[:, 2:4] = 0.0
    words = torch.arange(7).reshape(1, 7)
    smaller = vd.shrink(net, words)
    assert smaller.a.weight is smaller.table.weight and smaller.table.weight.shape == (7, 4)
    torch.testing.assert_close(smaller(words), net(words))
