"""A scalar tensor that serves all units follows the device and dtype of the weight, as a number does."""

from __future__ import annotations

import pytest
import torch

import pyro_vd as vd

MAKE = {
    "BernoulliDropout": lambda loc, value: vd.BernoulliDropout(loc, value),
    "ConcreteDropout": lambda loc, value: vd.ConcreteDropout(loc, value),
    "CorrelatedDropoutNormal": lambda loc, value: vd.CorrelatedDropoutNormal(loc, value),
    "GroupNormal": lambda loc, value: vd.GroupNormal(loc, torch.zeros_like(loc), value, value),
    "DropoutNormal": lambda loc, value: vd.DropoutNormal(loc, log_sigma2=value),
}
VALUES = {"float32": torch.tensor(0.25), "float64": torch.tensor(0.25, dtype=torch.float64), "a number": 0.25}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("loc", ["meta", "float32", "bfloat16"])
@pytest.mark.parametrize("family", MAKE)
def test_draws_and_moments_lie_where_the_weight_lies(family, loc, value):
    meta = loc == "meta"
    weight = torch.ones(2, 3, device="meta") if meta else torch.ones(2, 3, dtype=getattr(torch, loc))
    q = MAKE[family](weight, VALUES[value])
    for tensor in (q.rsample(), q.mean, q.variance):
        assert (tensor.device, tensor.dtype) == (weight.device, weight.dtype)


def test_the_gradient_reaches_the_scalar():
    value = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    vd.ConcreteDropout(torch.ones(2, 3), value).rsample().sum().backward()
    assert value.grad is not None and value.grad.dtype == torch.float64 and value.grad != 0
