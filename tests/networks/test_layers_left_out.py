"""A matrix whose use cannot be read, or that is complex, is named in a warning, however small its share is. Exact."""

from __future__ import annotations

import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


class Layer(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3, dtype=dtype))


class OwnFunction(Layer):
    def forward(self, x):
        return Product.apply(x, self.kernel)


class Lambda(Layer):
    def __init__(self):
        super().__init__()
        self.function = lambda x: x @ self.kernel

    def forward(self, x):
        return self.function(x)


class Hook(Layer):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, args, output: output @ module.kernel)

    def forward(self, x):
        return x


class Complex(Layer):
    def __init__(self):
        super().__init__(torch.complex64)

    def forward(self, x):
        return (x.to(torch.complex64) @ self.kernel).real


class Read(Layer):
    def forward(self, x):
        return x @ self.kernel


def choice(layer):
    net = nn.Sequential(nn.Linear(3, 300), nn.Linear(300, 3), layer())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = vd.BayesianModule(net, dist.Normal(0.0, 1.0)).weight_names
    return list(names), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("layer", [OwnFunction, Lambda, Hook, Complex])
def test_a_small_matrix_whose_use_is_not_read_is_named(layer):
    names, said = choice(layer)
    assert names == ["0.weight", "1.weight"]
    assert len(said) == 1 and f"deterministic are those of {layer.__name__} ('2')" in said[0]


def test_nothing_is_said_where_all_is_read():
    assert choice(Read) == (["0.weight", "1.weight", "2.kernel"], [])


def test_a_complex_matrix_is_never_advised():
    with pytest.raises(ValueError, match="none of them is a matrix that a linear operation uses"):
        vd.BayesianModule(Complex(), dist.Normal(0.0, 1.0))
    assert "where=" in choice(Complex)[1][0] and "make the real ones random too" in choice(Complex)[1][0]
