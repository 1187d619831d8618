"""Units of a recurrent layer that no one reads go, with those that only they read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.shrink_nets import recurrent


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_that_are_not_read(kind):
    """The next layer reads unit 0, which reads 1, which reads 2; 3 and 4 read all and each other."""
    torch.manual_seed(0)
    net = recurrent(kind)
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    with torch.no_grad():
        net.c.weight[:, 1:] = 0
        read = torch.eye(5)
        read[0, 1] = read[1, 2] = 1.0
        read[3:] = 1.0
        net.b.weight_hh_l0.mul_(read.repeat(gates, 1))
        net.b.weight_ih_l0.unflatten(0, (gates, 5))[:, :3, 4:] = 0
    x = torch.randn(2, 5, 6)
    smaller = vd.shrink(net, x)
    assert (smaller.b.hidden_size, smaller.b.input_size, smaller.c.in_features) == (3, 4, 3)
    assert smaller.a.out_features == 4, "what only dead units read"
    assert smaller.b.weight_hh_l0.shape == (3 * gates, 3) and smaller.b.bias_hh_l0.shape == (3 * gates,)
    for x in (torch.randn(3, 9, 6), torch.randn(4, 6)):  # unbatched, too
        torch.testing.assert_close(smaller(x), net(x), rtol=1e-5, atol=1e-5)
    smaller.load_state_dict(smaller.state_dict())
    smaller.b.flatten_parameters()
    smaller(x).sum().backward()
    assert smaller.b.weight_hh_l0.grad is not None
    assert kind(3, 4)(torch.randn(2, 3))[0].shape == (2, 4)


def test_a_recurrent_layer_that_is_not_read_keeps_a_unit():
    net = recurrent(nn.LSTM)
    with torch.no_grad():
        net.c.weight.zero_()
    with pytest.warns(UserWarning, match="shrink: expected a live unit in every layer, got none in .*b.weight_ih_l0"):
        smaller = vd.shrink(net, torch.randn(2, 5, 6))
    assert smaller.b.hidden_size == 1
    x = torch.randn(3, 4, 6)
    torch.testing.assert_close(smaller(x), net(x))
