"""Half precision: autocast and half-precision parameters, against float64, at activations of 300 and scales of 1e-4.

Exact: the noise is that of a fixed seed, the same for both; outputs may differ by the rounding of the precision.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyro_vd as vd
import pyro_vd.estimators
import pyro_vd.weights
from helpers.weights import random_weight
from pyro_vd.estimators import local, moments

DTYPES = [torch.bfloat16, torch.float16]
BAG = torch.tensor([[0, 1, 1], [2, 3, 3]])
# x and weight are filled by the test; every kind of layer once.
CALLS = {
    "linear": (lambda x, w: F.linear(x, w), (4, 6), (5, 6)),
    "matmul": (lambda x, w: x @ w, (4, 6), (6, 5)),
    "einsum": (lambda x, w: torch.einsum("bhi,hio->bho", x, w), (4, 2, 6), (2, 6, 5)),
    "bilinear": (lambda x, w: F.bilinear(x[:, :4], x[:, 4:] / 256, w), (4, 6), (5, 4, 2)),
    "conv1d": (lambda x, w: F.conv1d(x, w, padding=1), (2, 3, 6), (4, 3, 3)),
    "conv2d": (lambda x, w: F.conv2d(x, w), (2, 3, 6, 6), (4, 3, 3, 3)),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (2, 3, 4, 4), (3, 4, 2, 2)),
    "embedding": (lambda x, w: F.embedding(BAG.to(w.device), w), (1,), (5, 4)),
    "embedding_bag": (lambda x, w: F.embedding_bag(BAG.to(w.device), w, mode="mean"), (1,), (5, 4)),
    "scaled": (lambda x, w: F.linear(x, 0.5 * w), (4, 6), (5, 6)),
}


def outputs(call, x: Tensor, loc: Tensor, variance: Tensor, monkeypatch) -> tuple[Tensor, Tensor, Tensor]:
    """One output, its variance, and the mean."""
    seen = []

    def spy(op):
        seen.append(moments(op))
        return local(op)

    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", spy)
    output = call(x, random_weight(loc, variance))
    return output, seen[0][1], seen[0][0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("half_parameters", [False, True], ids=["autocast", "half parameters"])
def test_variance_is_that_of_float64_at_both_ends_of_the_range(name, dtype, half_parameters, device, monkeypatch):
    """300**2 * 6 terms overflow float16; (1e-4)**2 underflows it. Both are in one net."""
    call, x_shape, weight_shape = CALLS[name]
    make = torch.Generator().manual_seed(1)
    x = 300 * torch.rand(x_shape, generator=make)
    loc = (0.01 * torch.randn(weight_shape, generator=make)).to(dtype)  # the same number in every precision
    scale = 1e-4 * (1 + torch.rand(weight_shape, generator=make))
    x = x.to(dtype)
    exact = outputs(call, x.double(), loc.double(), scale.double().square(), monkeypatch)
    x, loc, scale = (tensor.to(device) for tensor in (x, loc, scale))
    if half_parameters:
        got = outputs(call, x, loc, scale.square(), monkeypatch)
    else:
        with torch.autocast(device, dtype=dtype):
            got = outputs(call, x.float(), loc.float(), scale.square(), monkeypatch)
    assert got[1].dtype == torch.float32 and got[0].isfinite().all()
    torch.testing.assert_close(got[1].cpu().double(), exact[1], rtol=1e-5, atol=0)
    # Rounded sums: the error of a product of n terms is n roundings of the largest, at most.
    size = 300 * 0.03 * math.prod(x_shape[1:])
    torch.testing.assert_close(got[2].cpu().double(), exact[2], rtol=0, atol=2 * torch.finfo(dtype).eps * size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_output_differs_from_float64_by_the_rounding_of_the_precision(name, dtype, monkeypatch):
    """With a mean of 0 the output is the noise alone: each element within two roundings of the float64 one."""
    call, x_shape, weight_shape = CALLS[name]
    x = (300 * torch.rand(x_shape)).to(dtype).float()
    loc, scale = torch.zeros(weight_shape), 1e-4 * (1 + torch.rand(weight_shape))
    noises: list[Tensor] = []

    def randn_like(variance: Tensor) -> Tensor:
        noises.append(torch.randn(variance.shape) if not noises else noises[0])
        return noises[-1].to(variance.dtype)

    monkeypatch.setattr(pyro_vd.estimators.torch, "randn_like", randn_like)
    exact, _, _ = outputs(call, x.double(), loc.double(), scale.double().square(), monkeypatch)
    with torch.autocast("cpu", dtype=dtype):
        got, _, _ = outputs(call, x, loc, scale.square(), monkeypatch)
    floor = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    torch.testing.assert_close(got.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=floor)
    assert (got != 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ["local", "per_example", "flipout"])
def test_training_step_in_half_precision_has_finite_gradients(dtype, estimator):
    loc = torch.randn(5, 6).requires_grad_()
    log_sigma2 = torch.full((5, 6), -18.0).requires_grad_()
    x = 300 * torch.randn(4, 6)
    x[0] = 0.0  # no variance at all
    with torch.autocast("cpu", dtype=dtype):
        weight = random_weight(loc, log_sigma2.exp(), estimator)
        output = F.linear(x, weight)
        loss = (output.float() / 100).square().mean()  # float16 gradients end at 65504, as those of any net
    gradients = torch.autograd.grad(loss, (loc, log_sigma2))
    assert output.dtype == dtype and all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cast_of_a_weight_keeps_its_variance_in_float32(dtype):
    """(1e-4)**2 is 0 in float16: a weight that is cast would lose its noise."""
    scale = torch.full((2, 3), 1e-4)
    for cast in (lambda w: w.to(dtype), lambda w: w.type_as(torch.zeros(1, dtype=dtype))):
        weight = cast(random_weight(torch.zeros(2, 3), scale.square()))
        assert weight.dtype == weight.loc.dtype == dtype and weight.variance.dtype == torch.float32
        output = F.linear(torch.ones(4, 3, dtype=dtype), weight)
        assert output.dtype == dtype and (output != 0).all()
    draw = cast(random_weight(torch.zeros(2, 3), scale.square(), "per_example")).noise.draw(torch.Size([4]))
    assert draw.dtype == dtype and (draw != 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ["local", "per_example", "flipout"])
def test_net_with_parameters_in_half_precision_stays_in_it(dtype, estimator):
    net = torch.nn.Linear(3, 2, dtype=dtype)
    posterior = vd.DropoutNormal(net.weight, log_sigma2=torch.full((2, 3), -18.42, dtype=dtype))
    weight = pyro_vd.weights.RandomWeight(
        posterior.noise(), posterior.variance, pyro_vd.weights.WeightState("w", posterior.noise(), estimator)
    )
    output = F.linear(torch.ones(4, 3, dtype=dtype), weight, net.bias)
    assert output.dtype == dtype and output.isfinite().all()
