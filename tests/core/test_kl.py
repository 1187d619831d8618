"""The KL to the log-uniform prior, against 40-digit values, quadrature and finite differences."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate, special
from torch.fx.experimental.proxy_tensor import make_fx

from helpers.paths import DATA
from pyro_vd.estimators import safe_sqrt
from pyro_vd.kl import kl_ard, kl_log_uniform, log_alpha_additive

METHODS = ("sigmoid", "cubic", "lower_bound", "exact")
ROWS = json.loads((DATA / "kl_log_uniform.json").read_text())["rows"]


def column(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([math.nan if row[name] is None else row[name] for row in ROWS], dtype=dtype)


def value_and_gradient(function, log_alpha):
    log_alpha = log_alpha.clone().requires_grad_()
    value = function(log_alpha)
    (gradient,) = torch.autograd.grad(value.sum(), log_alpha)
    return value.detach(), gradient


def exact_gradient(log_alpha: torch.Tensor) -> torch.Tensor:
    """-sqrt(u) * D(sqrt(u)) by SciPy's Dawson function, u = 1 / (2 * alpha)."""
    root = (-log_alpha.double() - math.log(2)).mul(0.5).exp().numpy()
    return torch.from_numpy(-root * special.dawsn(root))


@pytest.mark.parametrize(
    ("dtype", "value_error", "gradient_error"), [(torch.float64, 1e-9, 1e-8), (torch.float32, 1e-5, 1e-4)]
)
def test_exact_is_the_40_digit_value(dtype, value_error, gradient_error):
    log_alpha = column("log_alpha", dtype)
    assert log_alpha.min() == -20 and log_alpha.max() == 20
    value, gradient = value_and_gradient(lambda x: kl_log_uniform(x, "exact"), log_alpha)
    assert value.dtype == gradient.dtype == dtype
    assert (value.double() - column("kl_exact")).abs().max() <= value_error
    assert (gradient.double() - column("dkl_dlog_alpha_exact")).abs().max() <= gradient_error


def test_exact_keeps_its_accuracy_between_the_oracle_s_points():
    log_alpha = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda x: kl_log_uniform(x, "exact"), log_alpha)
    assert (gradient - exact_gradient(log_alpha)).abs().max() <= 1e-8
    value32, gradient32 = value_and_gradient(lambda x: kl_log_uniform(x, "exact"), log_alpha.float())
    assert (value32.double() - kl_log_uniform(log_alpha.float().double(), "exact")).abs().max() <= 1e-5
    assert (gradient32.double() - exact_gradient(log_alpha.float())).abs().max() <= 1e-4


@pytest.mark.parametrize("log_alpha", [-6.0, -3.5, -1.0, 0.0, 1.5, 4.0])
def test_exact_is_the_quadrature_of_its_definition(log_alpha):
    root_alpha = math.exp(0.5 * log_alpha)
    pole = -1 / root_alpha  # where log |1 + sqrt(alpha) * e| has its (integrable) singularity

    def integrand(e):
        return math.log(abs(1 + root_alpha * e)) * math.exp(-0.5 * e * e) / math.sqrt(2 * math.pi)

    edges = sorted({-12.0, 12.0, 0.0, *([pole] if abs(pole) < 12 else [])})
    parts = [integrate.quad(integrand, a, b, limit=400, epsabs=1e-12)[0] for a, b in pairwise(edges)]
    expected = -0.5 * log_alpha + sum(parts) + 0.5 * (math.log(2) + 0.5772156649015329)
    actual = kl_log_uniform(torch.tensor(log_alpha, dtype=torch.float64), "exact")
    assert abs(float(actual) - expected) <= 1e-8


@pytest.mark.parametrize(("method", "name"), [("sigmoid", "kl_sigmoid"), ("cubic", "kl_cubic")])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_fits_are_their_published_formulas(method, name, dtype, error):
    log_alpha, expected = column("log_alpha", dtype), column(name)
    valid = log_alpha <= 0 if method == "cubic" else log_alpha <= 20
    assert valid.sum() >= 8
    assert (kl_log_uniform(log_alpha, method).double() - expected)[valid].abs().max() <= error


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_ard_is_the_40_digit_value(dtype, error):
    assert (kl_ard(column("log_alpha", dtype)).double() - column("kl_ard")).abs().max() <= error


def test_ard_is_exact_far_out():
    log_alpha = torch.linspace(-35, 35, 141, dtype=torch.float64)
    expected = 0.5 * torch.logaddexp(torch.zeros_like(log_alpha), -log_alpha)
    torch.testing.assert_close(kl_ard(log_alpha), expected, rtol=1e-15, atol=1e-15)


def test_lower_bound_is_the_constant_less_half_log_alpha():
    log_alpha = torch.linspace(-20, 0, 41, dtype=torch.float64)
    expected = 0.5 * (math.log(2) + 0.5772156649015329) - 0.5 * log_alpha
    torch.testing.assert_close(kl_log_uniform(log_alpha, "lower_bound"), expected, rtol=0, atol=1e-12)
    # E log |e| <= 0 for alpha <= 1: it bounds the KL from above, the ELBO from below.
    assert (kl_log_uniform(log_alpha, "lower_bound") - kl_log_uniform(log_alpha, "exact")).min() >= -1e-10


def test_errors_of_the_fits_are_the_documented_ones():
    log_alpha = torch.linspace(-20, 20, 8001, dtype=torch.float64)
    exact, exact_slope = value_and_gradient(lambda x: kl_log_uniform(x, "exact"), log_alpha)
    fit, slope = value_and_gradient(kl_log_uniform, log_alpha)  # sigmoid is the default
    assert 0.0093 < (fit - exact).abs().max() <= 0.0094
    assert 0.0136 < (slope - exact_slope).abs().max() <= 0.0137
    below = log_alpha <= 0
    assert 0.0395 < (kl_log_uniform(log_alpha, "cubic") - exact)[below].abs().max() < 0.0405
    assert (kl_log_uniform(log_alpha, "lower_bound") - exact)[below].abs().max() < 0.25


@pytest.mark.parametrize("method", ["cubic", "lower_bound"])
def test_alpha_above_one_is_read_as_one_with_gradient_zero(method):
    above = torch.tensor([1e-3, 0.5, 3.0, 20.0, 100.0])
    value, gradient = value_and_gradient(lambda x: kl_log_uniform(x, method), above)
    assert (value == kl_log_uniform(torch.zeros(()), method)).all()
    assert (gradient == 0).all()
    _, gradient = value_and_gradient(lambda x: kl_log_uniform(x, method), torch.tensor([-1e-3, -3.0]))
    assert (gradient < 0).all()


def test_all_methods_share_the_additive_constant():
    small = torch.tensor(-20.0, dtype=torch.float64)
    values = torch.stack([kl_log_uniform(small, method) for method in METHODS])
    assert values.max() - values.min() <= 1e-3  # sigmoid's k1 is the constant to 6e-4
    assert values[1:].max() - values[1:].min() <= 1e-7
    large = torch.tensor(40.0, dtype=torch.float64)
    for formula in (lambda x: kl_log_uniform(x, "sigmoid"), lambda x: kl_log_uniform(x, "exact"), kl_ard):
        assert abs(float(formula(large))) <= 1e-10


def test_exact_gradient_is_relatively_accurate_where_it_is_small():
    # A weight with tiny loc has log_alpha of 15 to 20, and 2 / loc multiplies this gradient.
    log_alpha = torch.linspace(10, 20, 101)
    for dtype, error in ((torch.float64, 1e-9), (torch.float32, 3e-6)):
        _, gradient = value_and_gradient(lambda x: kl_log_uniform(x, "exact"), log_alpha.to(dtype))
        expected = exact_gradient(log_alpha.to(dtype))
        assert ((gradient.double() - expected) / expected).abs().max() <= error


@pytest.mark.parametrize("method", [*METHODS, "ard"])
def test_value_and_gradient_are_finite_far_out(method):
    function = kl_ard if method == "ard" else lambda x: kl_log_uniform(x, method)
    for dtype in (torch.float32, torch.float64):
        value, gradient = value_and_gradient(function, torch.tensor([-100.0, -50.0, 50.0, 100.0], dtype=dtype))
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
        assert abs(float(gradient[0]) + 0.5) <= 1e-6 and abs(float(gradient[-1])) <= 1e-6
        assert value[0] > value[1] > value[2] and (value[2:] >= -1e-6).all()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method):
    log_alpha = torch.tensor([-9.0, -4.2, -1.5, -0.3, 0.4, 3.0, 8.0], dtype=torch.float64, requires_grad=True)

    def function(x):
        return kl_log_uniform(x, method)

    assert torch.autograd.gradcheck(function, log_alpha)
    if method != "lower_bound":  # linear: its second derivative is a constant zero without a graph
        assert torch.autograd.gradgradcheck(function, log_alpha)


def test_vmap_and_grad_of_every_method():
    log_alpha = torch.linspace(-8, 8, 12, dtype=torch.float64).reshape(3, 4)
    for method in METHODS:
        value, gradient = value_and_gradient(lambda x, m=method: kl_log_uniform(x, m), log_alpha)
        batched = torch.func.vmap(lambda x, m=method: kl_log_uniform(x, m))(log_alpha)
        per_row = torch.func.vmap(torch.func.grad(lambda x, m=method: kl_log_uniform(x, m).sum()))(log_alpha)
        torch.testing.assert_close(batched, value, rtol=0, atol=0)
        torch.testing.assert_close(per_row, gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_traced_below_autograd(method):
    def step(x):
        x = x.detach().requires_grad_()
        value = kl_log_uniform(x, method).sum()
        return value, torch.autograd.grad(value, x)[0]

    log_alpha = torch.linspace(-8, 8, 9)
    traced = make_fx(step, tracing_mode="fake")(log_alpha)
    for actual, expected in zip(traced(log_alpha + 0.3), step(log_alpha + 0.3), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# Dynamo itself makes an instance of every autograd.Function it meets (torch 2.13).
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_graph_break():
    def total(x):
        return sum(kl_log_uniform(x, method).sum() for method in METHODS) + kl_ard(x).sum()

    log_alpha = torch.linspace(-8, 8, 9, dtype=torch.float64)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    pairs = zip(value_and_gradient(compiled, log_alpha), value_and_gradient(total, log_alpha), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="'sigmoid', 'cubic', 'lower_bound', 'exact', got 'sigmoids'"):
        kl_log_uniform(torch.zeros(3), "sigmoids")


def test_log_alpha_is_finite_at_loc_zero():
    for dtype in (torch.float32, torch.float64):
        loc = torch.zeros(3, dtype=dtype, requires_grad=True)
        log_alpha = log_alpha_additive(loc, torch.tensor([-10.0, 0.0, 5.0], dtype=dtype))
        (gradient,) = torch.autograd.grad(kl_log_uniform(log_alpha, "exact").sum(), loc)
        assert torch.isfinite(log_alpha).all() and (log_alpha > 20).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loc", [1e-4, 1e-8, -1e-8, 1e-12, 1e-30])
def test_log_alpha_of_small_weights_is_not_moved(loc):
    # An epsilon of 1e-8 inside the logarithm moves log_alpha by 0.7 already at loc = 1e-4.
    expected = -10.0 - 2 * math.log(abs(loc))
    for dtype, error in ((torch.float64, 1e-15), (torch.float32, 2e-7)):
        actual = log_alpha_additive(torch.tensor(loc, dtype=dtype), torch.tensor(-10.0, dtype=dtype))
        assert abs(float(actual) - expected) <= error * abs(expected) * 2


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_gradient_of_the_kl_for_small_loc(dtype, error):
    # dKL/dloc = -2 / loc * dKL/dlog_alpha = 2 / loc * sqrt(u) * D(sqrt(u)), u = loc**2 / (2 * sigma2); loc / sigma2 for
    # small loc.
    sigma2 = 1e-3
    loc = torch.tensor([-1e-2, -1e-5, -1e-8, 1e-12, 1e-8, 1e-5, 1e-3, 0.1], dtype=dtype, requires_grad=True)
    log_sigma2 = torch.full_like(loc, math.log(sigma2)).detach()
    kl = kl_log_uniform(log_alpha_additive(loc, log_sigma2), "exact")
    (gradient,) = torch.autograd.grad(kl.sum(), loc)
    exact_loc = loc.detach().double().numpy()
    root = abs(exact_loc) / math.sqrt(2 * sigma2)
    expected = torch.from_numpy(2 / exact_loc * root * special.dawsn(root))
    assert ((gradient.double() - expected) / expected).abs().max() <= error
    small = loc.detach().abs() < 1e-4
    torch.testing.assert_close(gradient[small].double(), loc.detach()[small].double() / sigma2, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_root_under_torch_compile_has_its_own_gradient():
    variance = torch.linspace(0.1, 4.0, 9, dtype=torch.float64)
    compiled = torch.compile(lambda x: (safe_sqrt(x) * x).sum(), fullgraph=True, backend="aot_eager")
    gradient = value_and_gradient(compiled, variance)[1]
    torch.testing.assert_close(gradient, 1.5 * variance.sqrt(), rtol=1e-12, atol=0)
