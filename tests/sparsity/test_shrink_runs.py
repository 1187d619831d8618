"""How often ``shrink`` runs a net to find other inputs that it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.shrink_nets import Net
from pyro_vd.sparsity.variations import variations


@pytest.mark.parametrize(("x", "runs"), [
    (torch.randn(2, 1, 6, 6), 1 + 4),  # the example's sizes, and twice along each axis, once each
    (torch.randint(3, (2, 6)), 1 + 1 + 4),  # twice the words are not taken, whichever they are
])  # fmt: skip
def test_inputs_that_the_net_does_not_take_are_tried_once_if_they_have_no_integers(x, runs):
    called = []

    def call(s, x):
        called.append(tuple(x.shape))
        assert x.shape[1:] in ((1, 6, 6), (6,)), "of one size"
        return s.a(x.flatten(1)) if x.is_floating_point() else s.b(x)

    found = variations(Net(call, a=nn.Linear(36, 2), b=nn.Embedding(4, 2)).eval(), (x,), {})
    assert len(called) == runs and len(found) == 2
