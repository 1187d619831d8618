"""DropoutNormal: its two parametrisations, its density and draws, and the KL rules."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from helpers.oracles import assert_mean_close, assert_variance_close
from pyro_vd import DropoutNormal, ImproperLogUniform
from pyro_vd.kl import kl_ard, kl_log_uniform
from pyro_vd.posteriors import normal as rules

METHODS = ("sigmoid", "cubic", "lower_bound", "exact", "ard")
LOC = torch.tensor([[0.7, -1.3, 2.0], [-0.2, 0.05, 3.0]], dtype=torch.float64)
LOG_ALPHA = torch.tensor([[-4.0, -1.0, 0.5], [2.0, -2.5, -8.0]], dtype=torch.float64)
LOG_SIGMA2 = LOG_ALPHA + LOC.square().log()


def both(**kwargs) -> tuple[DropoutNormal, DropoutNormal]:
    return DropoutNormal(LOC, LOG_ALPHA, **kwargs), DropoutNormal(LOC, log_sigma2=LOG_SIGMA2, **kwargs)


def reference() -> Normal:
    return Normal(LOC, (0.5 * LOG_SIGMA2).exp())


def formula(log_alpha: torch.Tensor, method: str) -> torch.Tensor:
    return kl_ard(log_alpha) if method == "ard" else kl_log_uniform(log_alpha, method)


def test_both_parametrisations_are_one_distribution():
    expected = {
        "loc": LOC,
        "mean": LOC,
        "scale": (0.5 * LOG_ALPHA).exp() * LOC.abs(),
        "stddev": (0.5 * LOG_ALPHA).exp() * LOC.abs(),
        "variance": LOG_ALPHA.exp() * LOC.square(),
        "log_alpha": LOG_ALPHA,
        "log_sigma2": LOG_SIGMA2,
        "dropout_rate": LOG_ALPHA.exp() / (1 + LOG_ALPHA.exp()),
    }
    for q in both():
        for name, value in expected.items():
            torch.testing.assert_close(getattr(q, name), value, rtol=1e-12, atol=0)


def test_density_is_the_normal_one():
    value = LOC + torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    quantile = torch.linspace(0.05, 0.95, 6, dtype=torch.float64).reshape(2, 3)
    for q in both():
        torch.testing.assert_close(q.log_prob(value), reference().log_prob(value))
        torch.testing.assert_close(q.cdf(value), reference().cdf(value))
        torch.testing.assert_close(q.icdf(quantile), reference().icdf(quantile))
        torch.testing.assert_close(q.entropy(), reference().entropy())


def test_moments_of_draws():
    for q in both():
        draws = q.rsample(torch.Size([20000]))
        assert draws.shape == (20000, 2, 3) and draws.dtype == torch.float64
        assert_mean_close(draws, LOC)
        assert_variance_close(draws, LOG_SIGMA2.exp())
        off_diagonal = (draws[:, 0, 0] - LOC[0, 0]) * (draws[:, 0, 1] - LOC[0, 1])
        assert_mean_close(off_diagonal, torch.zeros((), dtype=torch.float64))  # independent over elements


def test_draws_are_reparameterised():
    loc, log_sigma2 = LOC.clone().requires_grad_(), LOG_SIGMA2.clone().requires_grad_()
    draw = DropoutNormal(loc, log_sigma2=log_sigma2).rsample()
    noise = ((draw - loc) / (0.5 * log_sigma2).exp()).detach()
    gradients = torch.autograd.grad(draw.sum(), (loc, log_sigma2))
    torch.testing.assert_close(gradients[0], torch.ones_like(loc))  # additive: loc's gradient carries no noise
    torch.testing.assert_close(gradients[1], 0.5 * noise * (0.5 * LOG_SIGMA2).exp())
    loc, log_alpha = LOC.clone().requires_grad_(), LOG_ALPHA.clone().requires_grad_()
    draw = DropoutNormal(loc, log_alpha).rsample()
    noise = ((draw - loc) / ((0.5 * log_alpha).exp() * loc.abs())).detach()
    gradients = torch.autograd.grad(draw.sum(), (loc, log_alpha))
    torch.testing.assert_close(gradients[0], 1 + (0.5 * LOG_ALPHA).exp() * LOC.sign() * noise)
    torch.testing.assert_close(gradients[1], 0.5 * noise * (0.5 * LOG_ALPHA).exp() * LOC.abs())


def test_shapes():
    for q in both(kl="exact"):
        assert q.batch_shape == (2, 3) and q.event_shape == () and q.has_rsample
        wide = q.expand([4, 2, 3])
        assert type(wide) is DropoutNormal and wide.batch_shape == (4, 2, 3) and wide.kl == "exact"
        torch.testing.assert_close(wide.log_alpha, LOG_ALPHA.expand(4, 2, 3))
        torch.testing.assert_close(wide.log_prob(LOC), reference().log_prob(LOC).expand(4, 2, 3))
        assert wide.rsample(torch.Size([5])).shape == (5, 4, 2, 3)
        event = q.to_event(2)
        torch.testing.assert_close(event.log_prob(LOC), reference().log_prob(LOC).sum())
        assert event.batch_shape == () and event.event_shape == (2, 3)
        assert q.expand_by([7]).rsample().shape == (7, 2, 3)


def test_parameters_broadcast():
    per_unit = DropoutNormal(LOC, torch.tensor([[-1.0], [2.0]], dtype=torch.float64))
    assert per_unit.log_alpha.shape == per_unit.variance.shape == (2, 3)
    number = DropoutNormal(LOC, log_sigma2=-3.0)
    assert number.log_sigma2.dtype == torch.float64
    torch.testing.assert_close(number.variance, torch.full((2, 3), math.exp(-3), dtype=torch.float64))
    shared_loc = DropoutNormal(torch.ones(1), torch.zeros(3))
    assert shared_loc.batch_shape == shared_loc.loc.shape == shared_loc.rsample().shape == (3,)


def test_everything_is_finite_at_loc_zero():
    loc = torch.zeros(3, requires_grad=True)
    for q in (DropoutNormal(loc, 1.0), DropoutNormal(loc, log_sigma2=-1.0)):
        terms = (q.log_alpha, q.log_sigma2, q.variance, q.scale, q.dropout_rate)
        total = sum(term.sum() for term in terms) + kl_divergence(q, ImproperLogUniform()).sum()
        (gradient,) = torch.autograd.grad(total, loc)
        assert torch.isfinite(total) and torch.isfinite(gradient).all()
    additive = DropoutNormal(loc, log_sigma2=-1.0)
    assert (additive.dropout_rate == 1).all()
    torch.testing.assert_close(additive.variance, torch.full((3,), math.exp(-1)))


@pytest.mark.parametrize("method", METHODS)
def test_kl_to_the_log_uniform_prior_is_the_method_named(method):
    for q in both(kl=method):
        actual = kl_divergence(q, ImproperLogUniform())
        torch.testing.assert_close(actual, formula(LOG_ALPHA, method), rtol=1e-12, atol=1e-12)


def test_kl_methods_are_told_apart():
    values = [kl_divergence(both(kl=method)[1], ImproperLogUniform()).sum() for method in METHODS]
    assert len({round(float(value), 3) for value in values}) == len(METHODS)
    torch.testing.assert_close(kl_divergence(both()[0], ImproperLogUniform()).sum(), values[0])  # default: sigmoid


@pytest.mark.parametrize("method", METHODS)
def test_the_formula_named_is_the_one_called(method, monkeypatch):
    called = []
    monkeypatch.setattr(rules, "kl_log_uniform", lambda x, m: called.append(m) or kl_log_uniform(x, m))
    monkeypatch.setattr(rules, "kl_ard", lambda x: called.append("ard") or kl_ard(x))
    q = DropoutNormal(LOC, LOG_ALPHA, kl=method).expand([4, 2, 3]).to_event(2)
    kl_divergence(q, ImproperLogUniform().expand([4, 2, 3]).to_event(2))
    assert called == [method]


def test_normal_to_the_log_uniform_prior():
    expected = kl_log_uniform(LOG_ALPHA, "sigmoid")
    torch.testing.assert_close(kl_divergence(reference(), ImproperLogUniform()), expected)
    pyro_normal = dist.Normal(LOC, (0.5 * LOG_SIGMA2).exp())
    torch.testing.assert_close(kl_divergence(pyro_normal, ImproperLogUniform()), expected)
    torch.testing.assert_close(
        kl_divergence(pyro_normal.to_event(2), ImproperLogUniform().expand([2, 3]).to_event(2)), expected.sum()
    )


@pytest.mark.parametrize("prior", [Normal(0.0, 1.0), Normal(0.3, 2.5), Normal(LOC + 1, LOC.abs() + 0.1)])
def test_kl_to_a_normal_prior_is_torch_s(prior):
    expected = kl_divergence(reference(), prior)
    for q in both():
        torch.testing.assert_close(kl_divergence(q, prior), expected)


def test_kl_to_a_normal_prior_is_finite_at_extremes():
    loc = torch.tensor([0.0, 1e-30, 10.0], requires_grad=True)
    q = DropoutNormal(loc, log_sigma2=torch.tensor([-60.0, 20.0, -80.0]))
    kl = kl_divergence(q, Normal(0.0, 1.0))
    (gradient,) = torch.autograd.grad(kl.sum(), loc)
    assert torch.isfinite(kl).all() and torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient, loc.detach())


@pytest.mark.parametrize("prior", [ImproperLogUniform(), dist.Normal(0.0, 1.0)])
def test_kl_through_to_event_and_expand(prior):
    for q in both():
        elementwise = kl_divergence(q, prior)
        assert elementwise.shape == (2, 3)
        expanded = prior.expand([2, 3])
        torch.testing.assert_close(kl_divergence(q.to_event(2), expanded.to_event(2)), elementwise.sum())
        torch.testing.assert_close(kl_divergence(q.to_event(1), expanded.to_event(1)), elementwise.sum(-1))
        wide = kl_divergence(q.expand([4, 2, 3]).to_event(2), prior.expand([4, 2, 3]).to_event(2))
        torch.testing.assert_close(wide, elementwise.sum().expand(4))
        torch.testing.assert_close(
            kl_divergence(Independent(q, 2), Independent(expanded, 2)), elementwise.sum()
        )  # torch's own
        scalar = kl_divergence(DropoutNormal(LOC[0, :1], LOG_ALPHA[0, :1]), prior.expand([5]))
        torch.testing.assert_close(scalar, elementwise[0, 0].expand(5))


def test_ard_fits_its_own_prior():
    q = DropoutNormal(LOC, LOG_ALPHA, kl="ard")
    best = Normal(0.0, (LOC.square() + LOG_SIGMA2.exp()).sqrt())
    torch.testing.assert_close(kl_divergence(q, ImproperLogUniform()), kl_divergence(reference(), best))
    for factor in (0.9, 1.1):
        assert (kl_divergence(reference(), Normal(0.0, best.scale * factor)) > kl_divergence(reference(), best)).all()
    with pytest.raises(ValueError, match="DropoutNormal: kl='ard' fits the variance of the prior.*ImproperLogUniform"):
        kl_divergence(q.to_event(2), dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))


def test_exactly_one_of_log_alpha_and_log_sigma2():
    with pytest.raises(ValueError, match="DropoutNormal: expected exactly one of .*, got neither; write DropoutNormal"):
        DropoutNormal(LOC)
    with pytest.raises(ValueError, match="expected exactly one of log_alpha and log_sigma2, got both; write"):
        DropoutNormal(LOC, LOG_ALPHA, log_sigma2=LOG_SIGMA2)
    with pytest.raises(TypeError):
        DropoutNormal(LOC, log_sigma=LOG_SIGMA2)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["log_alpha", "log_sigma2"])
def test_shapes_that_do_not_broadcast(name):
    with pytest.raises(
        ValueError, match=rf"DropoutNormal: expected {name} to broadcast with loc of shape \(2, 3\), got"
    ):
        DropoutNormal(LOC, **{name: torch.zeros(2)})


def test_dtypes_that_are_not_floating_point():
    with pytest.raises(TypeError, match=r"DropoutNormal: expected loc to be a floating point tensor, got torch.int64"):
        DropoutNormal(torch.tensor([1, 2]), 0.0)
    with pytest.raises(TypeError, match=r"expected loc to be a floating point tensor, got float; write loc.float\(\)"):
        DropoutNormal(1.0, 0.0)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"expected log_sigma2 to be floating point, got torch.int64; write log_sigma2.fl"
    ):
        DropoutNormal(LOC, log_sigma2=torch.tensor(-3))


def test_unknown_kl():
    with pytest.raises(ValueError, match="DropoutNormal: expected kl to be one of 'sigmoid', .*'ard', got 'dawson'"):
        DropoutNormal(LOC, LOG_ALPHA, kl="dawson")
