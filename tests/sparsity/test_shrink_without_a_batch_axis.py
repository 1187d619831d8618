"""Nets whose units are the only axis of an activation, pooled over the examples; and one that assigns a buffer."""

import pytest
import torch
from torch import nn

import pyro_vd as vd


class Net(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.inner, self.head, self.pool = nn.Linear(3, 4), nn.Linear(4, 1), pool
        self.register_buffer("running", torch.zeros(4))

    def forward(self, x):
        hidden = torch.relu(self.inner(x))
        if self.pool is None:
            self.running = 0.9 * self.running + 0.1 * hidden.mean(0)
            return self.head(hidden)
        return self.head(self.pool(hidden))


POOLS = {"mean": lambda h: h.mean(0), "amax": lambda h: h.amax(0), "one": lambda h: h[0], "assigned buffer": None}


@pytest.mark.parametrize("name", POOLS)
def test_dead_units_go_and_outputs_stay(name):
    torch.manual_seed(0)
    net, x = Net(POOLS[name]), torch.randn(5, 3)
    with torch.no_grad():
        net.inner.weight[[0, 2]] = 0
        net.inner.bias[0], net.inner.bias[2] = 0, 0.7  # a dead unit, and one that is constant
    small = vd.shrink(net, x)
    assert small.inner.weight.shape == ((4, 3) if POOLS[name] is None else (2, 3))
    other = torch.randn(7, 3)
    assert torch.allclose(small(other), net(other), atol=1e-6)
