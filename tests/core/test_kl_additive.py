"""The KL of additive weights with one tensor kept for its gradient: the numbers of autograd. All checks are exact."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import pyro_vd as vd
from pyro_vd import kl
from pyro_vd.kl import kl_additive, log_alpha_additive

FORMULAS = {
    **{method: partial(kl.kl_log_uniform, method=method) for method in ("sigmoid", "cubic", "lower_bound", "exact")},
    "ard": kl.kl_ard,
}
LOC = torch.tensor([0.0, 1e-320, 1e-300, 1e-8, -0.3, 2.0, 50.0]).double()[:, None] * torch.ones(1, 3).double()
LOG_SIGMA2 = torch.tensor([-12.0, 0.0, 3.0]).double().expand(7, 3)


def plain(loc: Tensor, log_sigma2: Tensor, method: str = "sigmoid") -> Tensor:
    return FORMULAS[method](log_alpha_additive(loc, log_sigma2))


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("shape", [(7, 3), (3,), (1, 1), ()], ids=str)
def test_value_and_gradients_are_those_of_autograd_at_zero_too(method, shape):
    results = []
    for function in (kl_additive, plain):
        loc = LOC.clone().requires_grad_()
        log_sigma2 = LOG_SIGMA2[(0,) * (2 - len(shape))][tuple(slice(n) for n in shape)].clone().requires_grad_()
        value = function(loc, log_sigma2, method)
        weights = torch.arange(21.0).double().reshape(7, 3)
        results.append((value, *torch.autograd.grad((weights * value).sum(), (loc, log_sigma2))))
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape and got.isfinite().all()
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(1000, 700), (700_001,), (2, 3, 150_000)], ids=str)
def test_large_weights_in_pieces_are_the_same(shape):
    loc, log_sigma2 = torch.randn(2, *shape).unbind()
    results = []
    for function in (kl_additive, plain):
        inputs = [loc.clone().requires_grad_(), log_sigma2.clone().requires_grad_()]
        value = function(*inputs)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), inputs)))
        assert torch.equal(function(loc, log_sigma2), value.detach())  # without gradients
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", FORMULAS)
def test_it_has_a_second_derivative(method):
    inputs = [LOC[3:].clone().requires_grad_(), LOG_SIGMA2[3:].clone().requires_grad_()]

    def second(function) -> Tensor:
        first = torch.autograd.grad(function(*inputs, method).sum(), inputs, create_graph=True)
        return torch.cat(torch.autograd.grad(sum(gradient.sum() for gradient in first), inputs, materialize_grads=True))

    torch.testing.assert_close(second(kl_additive), second(plain), rtol=1e-10, atol=0)


def test_one_tensor_of_the_size_of_the_weight_is_kept_beside_the_parameters():
    loc, log_sigma2 = torch.randn(2, 50, 40).unbind()
    loc, log_sigma2 = loc.clone().requires_grad_(), log_sigma2.clone().requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        q = vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(2)
        loss = torch.distributions.kl_divergence(q, vd.ImproperLogUniform().expand([50, 40]).to_event(2))
    parameters = {tensor.untyped_storage().data_ptr() for tensor in (loc, log_sigma2)}
    assert sum(size for address, size in kept.items() if address not in parameters) == loc.nbytes
    loss.backward()


def test_unknown_method_is_an_error():
    with pytest.raises(ValueError, match="kl_additive: expected method to be one of 'sigmoid', .*'ard', got 'best'"):
        kl_additive(LOC, LOG_SIGMA2, "best")
