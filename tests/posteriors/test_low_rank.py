"""The diagonal plus low-rank Gaussian weight against dense matrices; the KL of all Gaussian families by quadrature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence

import pyro_vd as vd
from helpers.layer_cases import CASES
from helpers.noise_families import DRAWS, Moments, random_weight
from helpers.noise_families import parameters as unit_parameters
from helpers.oracles import assert_mean_close, quadrature_kl
from helpers.output_moments import assert_output_moments
from pyro_vd.guides import AutoLowRank

CALLS = ("F.linear (3,)", "F.linear (2, 3)", "F.linear (2, 1, 3)", "x @ w", "w @ x", "addmm", "conv1d plain",
         "conv2d stride and padding", "conv2d groups and dilation", "conv3d plain")  # fmt: skip


def parameters(rank: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(rank + sum(shape))
    loc, log_sigma2 = (torch.randn(shape, generator=make, dtype=torch.float64) for _ in range(2))
    return loc, log_sigma2 - 1, 0.5 * torch.randn((rank, *shape), generator=make, dtype=torch.float64)


def moments(loc: Tensor, log_sigma2: Tensor, factor: Tensor) -> Moments:
    """``cov(w_a, w_b) = sum_r factor[r, a] * factor[r, b] + (a is b) * exp(log_sigma2[a])``, by loops."""
    elements = list(np.ndindex(*loc.shape))
    shared = np.zeros((len(elements),) * 2)
    for i, a in enumerate(elements):
        for j, b in enumerate(elements):
            shared[i, j] = sum(float(f[a] * f[b]) for f in factor)
    return Moments(loc.numpy().ravel(), shared, log_sigma2.exp().numpy().ravel())


def log_uniform(shape) -> Any:
    return vd.ImproperLogUniform().expand(shape).to_event(len(shape))


def dense(q: tuple[Tensor, Tensor, Tensor]) -> MultivariateNormal:
    return MultivariateNormal(q[0].flatten(), torch.from_numpy(moments(*q).covariance))


@pytest.mark.parametrize("kind", ["deterministic", "random"])
@pytest.mark.parametrize("call", CALLS)
def test_local_outputs_have_the_moments_of_weight_space(call, kind):
    q = parameters(2, CASES[call].weight)
    assert_output_moments(CASES[call], vd.LowRankNormal(*q), moments(*q), "local", kind)


@pytest.mark.parametrize("call", ["F.linear (3,)", "F.linear (2, 3)", "x @ w", "conv2d groups and dilation"])
def test_per_example_outputs_have_the_moments_of_weight_space(call):
    q = parameters(2, CASES[call].weight)
    assert_output_moments(CASES[call], vd.LowRankNormal(*q), moments(*q), "per_example", "random")


def test_the_factors_of_a_row_are_recovered_exactly_and_differ_over_rows():
    """With no diagonal noise, ``y - x @ loc = sum_r z_r * (x @ factor[r])`` for one z a row."""
    loc, _, factor = parameters(2, (5, 3))
    x = torch.randn(60, 3).double()
    for call in (F.linear, lambda x, w: x @ w.T):
        y = call(x, random_weight(vd.LowRankNormal(loc, -90.0, factor), "local"))
        columns = torch.stack([F.linear(x, f) for f in factor], -1)
        z = torch.linalg.lstsq(columns, (y - F.linear(x, loc))[..., None]).solution
        torch.testing.assert_close((columns @ z)[..., 0], y - F.linear(x, loc), rtol=0, atol=1e-9)
        assert len(z[:, 0, 0].unique()) == len(z[:, 1, 0].unique()) == 60


def test_the_positions_of_an_example_share_the_factors():
    loc, _, factor = parameters(1, (4, 3, 2))
    x = torch.randn(50, 3, 5).double()
    y = F.conv1d(x, random_weight(vd.LowRankNormal(loc, -90.0, factor), "local"))
    z = (y - F.conv1d(x, loc)) / F.conv1d(x, factor[0])
    torch.testing.assert_close(z, z[:, :1, :1].expand_as(z), rtol=0, atol=1e-8)
    assert len(z[:, 0, 0].unique()) == 50


@pytest.mark.parametrize(("rank", "shape"), [(1, (2, 3)), (3, (2, 3)), (6, (2, 3)), (2, (2, 1, 3))])
def test_draws_density_and_properties_are_those_of_the_dense_gaussian(rank, shape):
    parts = parameters(rank, shape)
    q, oracle = vd.LowRankNormal(*parts), dense(parts)
    torch.testing.assert_close(q.variance.flatten(), oracle.variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(q.log_det_covariance, torch.logdet(oracle.covariance_matrix), rtol=0, atol=1e-10)
    torch.testing.assert_close(q.log_alpha, (q.variance / q.loc.square()).log(), rtol=0, atol=1e-12)
    value = torch.randn((4, 5, *shape)).double()
    torch.testing.assert_close(q.log_prob(value), oracle.log_prob(value.flatten(2)), rtol=0, atol=1e-9)
    torch.testing.assert_close(q.entropy(), oracle.entropy(), rtol=0, atol=1e-10)
    deviation = q.rsample(torch.Size([8 * DRAWS])).flatten(1) - oracle.mean
    assert_mean_close(deviation, torch.zeros(6).double())
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], oracle.covariance_matrix)


@pytest.mark.parametrize(("rank", "shape"), [(1, (2, 3)), (4, (2, 3)), (2, (2, 2, 2))])
def test_kl_to_a_normal_prior_is_that_of_dense_gaussians(rank, shape):
    parts = parameters(rank, shape)
    prior_loc, prior_scale = torch.randn(shape).double(), 0.5 + torch.rand(shape).double()
    kl = kl_divergence(vd.LowRankNormal(*parts), dist.Normal(prior_loc, prior_scale).to_event(len(shape)))
    prior = MultivariateNormal(prior_loc.flatten(), prior_scale.flatten().square().diag())
    assert float(kl) == pytest.approx(float(kl_divergence(dense(parts), prior)), abs=1e-9)
    loc, log_sigma2, factor = parts
    q = LowRankMultivariateNormal(loc.flatten(), factor.flatten(1).mT, log_sigma2.flatten().exp())
    assert float(kl) == pytest.approx(float(kl_divergence(q, prior)), abs=1e-9)


def test_kl_to_a_normal_prior_has_the_gradient_of_finite_differences():
    parts = [part.requires_grad_() for part in parameters(2, (2, 2))]
    prior = dist.Normal(torch.tensor(0.3).double(), 0.7).expand([2, 2]).to_event(2)
    assert torch.autograd.gradcheck(lambda *parts: kl_divergence(vd.LowRankNormal(*parts), prior), parts)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
def test_kl_to_the_log_uniform_prior_is_quadrature_and_monte_carlo(shape):
    """``E log q + sum_i E log |w_i|``, the constant that of the one-dimensional KL for each weight."""
    loc, log_sigma2, factor = parameters(1, shape)
    q = vd.LowRankNormal(loc, log_sigma2, factor, kl="exact")
    kl = float(kl_divergence(q, log_uniform(shape)))
    constant = loc.numel() * (0.5 * (math.log(2) + 0.5772156649015329) + 0.5 * math.log(2 * math.pi * math.e))
    oracle = dense((loc, log_sigma2, factor))
    # E log |w| of each marginal, from the quadrature of its own KL: what is left of it without entropy and constant.
    alphas = oracle.variance / oracle.mean.square()
    sizes = sum(
        quadrature_kl(math.log(a)) + 0.5 * math.log(a) - 0.5 * (math.log(2) + 0.5772156649015329) + math.log(abs(m))
        for a, m in zip(alphas.tolist(), oracle.mean.tolist(), strict=True)
    )
    assert kl == pytest.approx(-float(oracle.entropy()) + sizes + constant, abs=1e-8)
    draws = oracle.sample(torch.Size([200_000]))
    assert_mean_close(oracle.log_prob(draws) + draws.abs().log().sum(-1) + constant, torch.tensor(kl).double())


def test_correlation_costs_what_it_saves_in_entropy():
    """Same marginals, no correlation: the KL falls by the total correlation, exactly."""
    loc, log_sigma2, factor = parameters(1, (1, 2))
    q = vd.LowRankNormal(loc, log_sigma2, factor)
    independent = vd.DropoutNormal(loc, log_sigma2=q.variance.log()).to_event(2)
    prior = log_uniform((1, 2))
    covariance = dense((loc, log_sigma2, factor)).covariance_matrix
    rho = covariance[0, 1] / covariance.diagonal().prod().sqrt()
    difference = kl_divergence(q, prior) - kl_divergence(independent, prior)
    torch.testing.assert_close(difference, -0.5 * torch.log1p(-rho.square()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_correlated_kl_is_one_term_for_each_noise(dim):
    loc, _, rate, _ = unit_parameters((4, 3, 2), (4, 3, 2)[dim])
    terms = [quadrature_kl(math.log(p)) for p in rate]
    q = vd.CorrelatedDropoutNormal(loc, rate.log(), unit_dim=dim, kl="exact")
    assert float(kl_divergence(q, log_uniform((4, 3, 2)))) == pytest.approx(sum(terms), abs=1e-8)
    shared = vd.CorrelatedDropoutNormal(loc, float(rate[0].log()), unit_dim=dim, kl="exact")
    assert float(kl_divergence(shared, log_uniform((4, 3, 2)))) == pytest.approx(len(rate) * terms[0], abs=1e-8)


def test_type_a_kl_of_one_shared_alpha_counts_every_weight():
    q = vd.DropoutNormal(
        torch.randn(4, 3).double(), torch.full((1, 1), -1.2, dtype=torch.float64), kl="exact"
    ).to_event(2)
    assert float(kl_divergence(q, log_uniform((4, 3)))) == pytest.approx(12 * quadrature_kl(-1.2), abs=1e-8)


def test_ard_kl_is_that_to_the_best_zero_mean_gaussian():
    loc, log_sigma2, _, _ = unit_parameters((2, 3), 3)
    q = vd.DropoutNormal(loc, log_sigma2=log_sigma2, kl="ard").to_event(2)
    scales = torch.linspace(-4, 4, 20001).double().exp()[:, None, None]
    best = kl_divergence(Normal(loc, (0.5 * log_sigma2).exp()), Normal(0.0, scales)).amin(0)
    assert float(kl_divergence(q, log_uniform((2, 3)))) == pytest.approx(float(best.sum()), abs=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_group_kl_is_that_of_every_unit_and_of_every_weight(dim):
    loc, log_sigma2, rate, unit_loc = unit_parameters((4, 3), (4, 3)[dim])
    q = vd.GroupNormal(loc, log_sigma2, unit_loc, rate.log(), unit_dim=dim, kl="exact")
    units = sum(quadrature_kl(math.log(p) - 2 * math.log(abs(m))) for p, m in zip(rate, unit_loc, strict=True))
    weights = kl_divergence(Normal(loc, (0.5 * log_sigma2).exp()), Normal(torch.zeros(4, 3).double(), 1.0)).sum()
    assert float(kl_divergence(q, log_uniform((4, 3)))) == pytest.approx(units + float(weights), abs=1e-8)


def test_errors_name_what_was_expected():
    loc, log_sigma2, factor = parameters(1, (2, 3))
    with pytest.raises(ValueError, match=r"factor of shape \(rank, \*\(2, 3\)\), got \(1, 3, 2\)"):
        vd.LowRankNormal(loc, log_sigma2, factor.mT)
    for rank in (0, 7):
        with pytest.raises(ValueError, match=rf"rank between 1 and the 6 weights of the layer, got {rank}"):
            vd.LowRankNormal(loc, log_sigma2, factor.expand(1, 2, 3).repeat(rank, 1, 1))
    with pytest.raises(ValueError, match="expected one weight, got a batch"):
        vd.LowRankNormal(loc, log_sigma2, factor).expand(torch.Size([2]))
    with pytest.raises(ValueError, match=r"LowRankNormal has a form for \(local, shared, per_example\), got 'flipout'"):
        random_weight(vd.LowRankNormal(loc, log_sigma2, factor), "flipout")


@pytest.mark.parametrize("rank", [1, 4])
def test_the_factors_start_with_as_much_variance_as_the_diagonal(rank):
    torch.manual_seed(0)
    bnn = vd.BayesianModule(torch.nn.Linear(200, 100), dist.Normal(0.0, 1.0))
    guide = AutoLowRank(bnn, rank=rank, init_log_sigma2=-4.0)
    variance = guide.posterior("net.weight").variance.mean().item()
    # 20,000 elements: at rank 1 the mean of their squares has a standard error of 1 %, and the bound is six of them.
    assert variance == pytest.approx(2 * math.exp(-4.0), rel=0.06)
