"""The KL of a large tensor is computed in blocks: the same numbers to the last digit. All checks are exact."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vd import _torch, kl

FUNCTIONS = {
    **{f"additive, {method}": (lambda a, b, m=method: kl.kl_additive(a, b, m)) for method in kl.KL_METHODS},
    **{method: (lambda a, b, m=method: kl.kl_log_uniform(b, m)) for method in kl.LOG_UNIFORM_METHODS},
    "ard": lambda a, b: kl.kl_ard(b),
}


def inputs(shape: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).requires_grad_(), torch.randn(shape).requires_grad_()]


def value_and_gradients(function, pair) -> list[torch.Tensor]:
    value = function(*pair)
    return [value, *torch.autograd.grad(value.sin().sum(), pair, allow_unused=True)]


@pytest.fixture
def number_of_calls(monkeypatch):
    """How often the formulas are computed from here on, with blocks of 256 elements."""
    calls = []
    for method, formula in list(kl._METHODS.items()):
        monkeypatch.setitem(kl._METHODS, method, lambda x, f=formula: (calls.append(x.numel()), f(x))[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(_torch, "_BLOCK", 256)
    yield calls
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(3, 256), (50, 21), (257,), (256,), (5, 7, 11, 3)], ids=str)
def test_blocks_have_the_numbers_of_the_whole(number_of_calls, monkeypatch, name, shape):
    pair = inputs(shape)
    got = value_and_gradients(FUNCTIONS[name], pair)
    size = pair[0].numel()
    assert number_of_calls == [256] * (size // 256) + [size % 256] * (size % 256 > 0)
    monkeypatch.setattr(_torch, "_BLOCK", 2**40)
    for one, other in zip(got, value_and_gradients(FUNCTIONS[name], pair), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "channels last", "shared log_sigma2"])
def test_other_layouts_are_computed_whole(number_of_calls, layout):
    loc, log_sigma2 = inputs((10, 6, 8, 9))
    change = {
        "transposed": lambda x: x.mT,
        "strided": lambda x: x[:, ::2],
        "expanded": lambda x: x[:1].expand(10, 6, 8, 9),
        "channels last": lambda x: x.to(memory_format=torch.channels_last),
        "shared log_sigma2": lambda x: x if x is loc else x[0],
    }[layout]
    value = kl.kl_additive(change(loc), change(log_sigma2))
    assert number_of_calls == [value.numel()]
    whole = kl.kl_additive(change(loc).double(), change(log_sigma2).double())
    torch.testing.assert_close(value.double(), whole, rtol=1e-5, atol=1e-6)


def test_what_is_recorded_compiled_or_mapped_has_no_blocks(number_of_calls):
    pair = [one.detach() for one in inputs((50, 21))]
    for mode in ("real", "fake"):
        number_of_calls.clear()
        make_fx(lambda a, b: kl.kl_additive(a, b), tracing_mode=mode)(*pair)
        assert number_of_calls == [1050]
    number_of_calls.clear()
    mapped = torch.func.vmap(kl.kl_additive)(*pair)
    assert len(number_of_calls) == 1
    assert torch.equal(mapped, kl.kl_additive(*pair))


def test_a_second_derivative_is_that_of_the_whole(number_of_calls):
    pair = [one.detach().double().requires_grad_() for one in inputs((40, 21))]
    first = torch.autograd.grad(kl.kl_additive(*pair).sum(), pair, create_graph=True)
    second = torch.autograd.grad(first[0].sum() + first[1].square().sum(), pair)
    log_alpha = kl.log_alpha_additive(*pair)
    expected = torch.autograd.grad(kl.kl_log_uniform(log_alpha).sum(), pair, create_graph=True)
    expected = torch.autograd.grad(expected[0].sum() + expected[1].square().sum(), pair)
    for one, other in zip(second, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
