"""Moments of a Gaussian through one operation, against 200,000 draws of its input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers.oracles import assert_mean_close, assert_variance_close
from pyro_vd.predict.moments import GaussianTensor

DRAWS = 200_000


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


OPERATIONS = {
    "relu": torch.relu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.3),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "square": torch.square,
    "exp": torch.exp,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "shift and scale": lambda x: 3 - (2 * x + 1) / 4,
    "with itself reversed": lambda x: x[:, :2] - 0.5 * x[:, 2:],
    "product": lambda x: x[:, :2] * x[:, 2:],
    "matrix": lambda x: x @ torch.arange(8.0).reshape(4, 2),
    "linear": lambda x: F.linear(x, torch.arange(8.0).reshape(2, 4), torch.ones(2)),
    "constant convolution": lambda x: F.conv1d(x[:, None], torch.tensor([[[1.0, -2.0]]]), torch.ones(1), padding=1),
    "mean": lambda x: x.mean(-1),
    "mean of all": lambda x: x.mean(),
    "sum": lambda x: x.sum(1, keepdim=True),
    "cat": lambda x: torch.cat([x, torch.ones(2, 1), x], 1),
    "stack": lambda x: torch.stack([x, 2 * x]),
    "views": lambda x: x.reshape(2, 2, 2).transpose(0, 2).flatten(1)[:, [1, 0]],
    "average pool": lambda x: F.avg_pool1d(x[:, None], 2, padding=1),
    "adaptive average pool": lambda x: F.adaptive_avg_pool1d(x[:, None], 2),
    "average pool 2d": lambda x: F.avg_pool2d(x.reshape(1, 1, 2, 4), (1, 2), 1),
    "max pool of two": lambda x: F.max_pool1d(x[:, None], 2),
    "max pool 2d of two": lambda x: F.max_pool2d(x.reshape(1, 1, 2, 4), (2, 1)),
    "max pool with padding": lambda x: F.max_pool1d(x[:, None], 2, padding=1),
    "maximum": lambda x: torch.maximum(x[:, :2], x[:, 2:]),
    "maximum of a constant": lambda x: torch.maximum(x, torch.tensor(0.2)),
    "batch norm": lambda x: F.batch_norm(x, torch.ones(4), torch.full((4,), 2.0), torch.arange(4.0), torch.ones(4)),
    "masked": lambda x: x.masked_fill(torch.tensor([True, False, False, True]), 0.5),
    "attention's values": lambda x: F.scaled_dot_product_attention(torch.ones(1, 3), torch.eye(2, 3), x),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_moments_of_an_operation(name):
    """Against the operation on 200,000 draws of its input, within standard errors."""
    operation = OPERATIONS[name]
    mean, deviation = torch.randn(2, 4), torch.rand(2, 4) + 0.5
    moments = operation(GaussianTensor(mean, deviation.square()))
    draws = torch.func.vmap(operation)(mean + deviation * torch.randn(DRAWS, 2, 4))
    assert moments.shape == draws.shape[1:] and moments.variance.shape == draws.shape[1:]
    assert_mean_close(draws, moments.mean_value)
    assert_variance_close(draws, moments.variance)


def test_a_variance_of_zero_is_the_function_itself():
    x = torch.tensor([-1.0, 0.0, 2.0])
    point = GaussianTensor(x, torch.zeros(3))
    for operation in (torch.relu, torch.tanh, F.softplus, F.hardtanh, lambda v: F.max_pool1d(v[None, None], 2)):
        result = operation(point)
        torch.testing.assert_close(result.mean_value, operation(x))
        assert (result.variance.abs() < 1e-12).all() and result.variance.isfinite().all()
