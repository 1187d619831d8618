"""Dropout as regularisation, as an ensemble and as a posterior: answers that are exact.

Binary dropout of d units has 2**d masks, so that expectations over it are sums. Where the library's own noise
is enumerated, it is by collecting its distinct draws. Statistical assertions fail by chance with probability 1e-6.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyro_vd as vd
from helpers.noise_families import FAMILIES, parameters, random_weight
from helpers.oracles import assert_mean_close, standard_errors
from pyro_vd.guides import AutoBernoulliDropout, AutoGaussianDropout


def masks(units: int, rate: float) -> tuple[Tensor, Tensor]:
    """All 2**units masks, divided by the probability of keeping, and their probabilities."""
    kept = torch.tensor(list(product((0.0, 1.0), repeat=units)), dtype=torch.float64)
    probability = (kept * (1 - rate) + (1 - kept) * rate).prod(-1)
    return kept / (1 - rate), probability


def distinct_draws(posterior, number: int = 400) -> Tensor:
    """The support of the library's noise."""
    return posterior.rsample(torch.Size([number])).unique(dim=0)


def test_inverted_dropout_keeps_the_mean_and_adds_its_variance():
    h = torch.tensor([[2.0, -1.0, 3.0]]).double()
    q = vd.BernoulliDropout(h, 0.5)
    draws = distinct_draws(q)
    assert len(draws) == 8
    for std in (draws.std(0, correction=0), q.scale):
        torch.testing.assert_close(std, torch.tensor([[2.0, 1.0, 3.0]]).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(draws.mean(0), h, rtol=0, atol=1e-12)
    torch.testing.assert_close(q.mean, h, rtol=0, atol=0)


def test_expected_squared_loss_is_the_loss_of_the_mean_and_a_ridge_penalty():
    """``(w.x - y)**2 + p / (1 - p) * sum(w**2 * x**2)`` = 9 + 9 = 18, over the 8 masks of the library."""
    w, x = torch.tensor([[1.0, -1.0, 2.0]]).double(), torch.tensor([1.0, 2.0, -1.0]).double()
    q = vd.BernoulliDropout(w, 0.5)
    draws = distinct_draws(q)
    assert len(draws) == 8 and float(F.linear(x, q.mean)) ** 2 == 9
    assert float((draws @ x).square().mean()) == pytest.approx(18, abs=1e-12)
    outputs = F.linear(x.expand(4000, 3), random_weight(q, "local")).unique()
    expected = (draws @ x).flatten().unique()
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)


def linear_model(dataset_size: int, scale: float, weight: Tensor):
    """A linear model with Gaussian noise; ``-log p = squared error / (2 * scale**2)`` and a constant."""
    net = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        net.weight.copy_(weight)
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y=None):
        z = bnn(x)
        with vd.data_plate(dataset_size, len(x)):
            return pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)

    return model


def test_the_loss_of_the_elbo_is_18_in_the_mean_and_each_of_its_8_values():
    w, x = torch.tensor([[1.0, -1.0, 2.0]]).double(), torch.tensor([[1.0, 2.0, -1.0]]).double()
    model = linear_model(1, math.sqrt(0.5), w)
    guide = AutoBernoulliDropout(model, 0.5)
    y, constant = torch.zeros(1, 1).double(), 0.5 * math.log(math.pi)
    for estimator in ("local", "shared", "per_example"):
        terms = [vd.TraceVD_ELBO(estimator=estimator).terms(model, guide, x, y) for _ in range(400)]
        losses = torch.stack([term.loss for term in terms]).detach() - constant
        assert all(float(term.kl_total) == 0 for term in terms)
        values = losses.mul(1e9).round().div(1e9).unique()
        expected = (masks(3, 0.5)[0] * w @ x.T).square().unique()
        torch.testing.assert_close(values, expected.flatten(), rtol=0, atol=1e-8)
        assert_mean_close(losses, torch.tensor(18.0).double())


@pytest.mark.parametrize("estimator", ["local", "shared", "per_example"])
def test_expected_gradient_over_masks_is_zero_at_the_ridge_solution_and_nowhere_else(estimator, monkeypatch):
    """The gradient of the library, its noise replaced by each of the 8 masks, summed with their probabilities."""
    rate = 0.3
    x, y, ridge, plain = ridge_problem(rate)
    for start, expected in (
        (ridge, torch.zeros(1, 3).double()),
        (plain, rate / (1 - rate) * plain * x.square().sum(0)),
    ):
        pyro.clear_param_store()
        model = linear_model(20, 1.0, start)
        guide = AutoBernoulliDropout(model, rate)
        guide(x, y)
        total = torch.zeros(1, 3).double()
        for mask, probability in zip(*masks(3, rate), strict=True):
            monkeypatch.setattr(vd.BernoulliDropout, "draw_units", lambda self, shape, m=mask: m.expand(*shape, 3))
            loss = vd.TraceVD_ELBO(estimator=estimator).differentiable_loss(model, guide, x, y)
            total += probability * torch.autograd.grad(loss, guide.locs.net.weight)[0]
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-10)


def ridge_problem(rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, and the minimisers of expected loss with dropout (ridge) and of the loss without."""
    x = torch.randn(20, 3).double() @ torch.tensor([[1.0, 0.6, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.7]]).double()
    y = x @ torch.tensor([[1.0], [-1.0], [2.0]]).double() + 0.3 * torch.randn(20, 1).double()
    square = x.T @ x
    penalty = rate / (1 - rate) * square.diagonal().diag()
    ridge, plain = (torch.linalg.solve(matrix, x.T @ y).T for matrix in (square + penalty, square))
    return x, y, ridge, plain


@pytest.mark.slow
def test_training_with_dropout_meets_the_ridge_solution():
    """SGD on a quadratic is unbiased around its minimum: the means of blocks of iterates are samples of it.

    The expected step is linear in the weight, ``-lr * H (w - ridge)``, noise or not, so that the stationary mean of the
    iterates is the ridge solution exactly, at any step size. A block is 14 relaxation times of the slowest direction or
    more; the correlation of neighbouring blocks is estimated and enters the bound.
    """
    rate = 0.3
    x, y, ridge, plain = ridge_problem(rate)
    model = linear_model(20, 1.0, torch.zeros(1, 3).double())
    guide = AutoBernoulliDropout(model, rate)
    guide(x, y)
    loc = guide.locs.net.weight
    curvature = torch.linalg.eigvalsh(x.T @ x + rate / (1 - rate) * (x.T @ x).diagonal().diag())
    lr, block = 0.01, 100
    assert lr * curvature[0] * block > 10 and lr * curvature[-1] < 1
    module, optimizer = vd.TraceVD_ELBO()(model, guide), torch.optim.SGD([loc], lr)
    means = torch.zeros(25, 3).double()
    for step in range(26 * block):  # the first block is not kept
        optimizer.zero_grad()
        module(x, y).backward()
        optimizer.step()
        if step >= block:
            means[step // block - 1] += loc.detach()[0] / block
    deviation = means - means.mean(0)
    neighbours = (deviation[1:] * deviation[:-1]).mean(0) / deviation.square().mean(0)
    factor = float((1 + 2 * neighbours.clamp(min=0)).sqrt().max())
    assert_mean_close(means, ridge[0], factor)
    bound = factor * standard_errors(3) * means.std(0) / math.sqrt(len(means))
    assert ((plain - ridge).abs()[0] > 5 * bound).any()  # and it is not least squares


def softmax_net(units: int, layers: int, rate: float):
    """A model with dropout on the input of its first layer, class probabilities of each sub-network, of the whole."""
    hidden = [nn.Linear(units, 8), nn.Tanh()] if layers == 2 else []
    net = nn.Sequential(*hidden, nn.Linear(8 if layers == 2 else units, 3)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform(), where="0.weight")

    def model(x):
        return pyro.deterministic("probs", bnn(x).softmax(-1), event_dim=2)

    x = torch.randn(4, units).double()
    scaled, probability = masks(units, rate)
    log_probs = torch.stack([net(x * mask).log_softmax(-1) for mask in scaled]).detach()
    return model, AutoBernoulliDropout(model, rate), x, log_probs, probability, net(x).softmax(-1).detach()


def weight_scaling(model, guide, x) -> Tensor:
    return vd.posterior_predictive(model, guide, x, num_samples=1, mode="mean", return_sites=["probs"])["probs"][0]


def geometric_mean(log_probs: Tensor, probability: Tensor) -> Tensor:
    return torch.einsum("m,mnc->nc", probability, log_probs).softmax(-1)


@pytest.mark.parametrize(("units", "rate"), [(10, 0.5), (6, 0.2)])
def test_weight_scaling_is_the_geometric_mean_of_all_sub_networks_for_a_softmax_layer(units, rate):
    model, guide, x, log_probs, probability, _ = softmax_net(units, 1, rate)
    assert len(log_probs) == 2**units and float(probability.sum()) == pytest.approx(1)
    geometric = geometric_mean(log_probs, probability)
    torch.testing.assert_close(weight_scaling(model, guide, x), geometric, rtol=0, atol=1e-12)
    arithmetic = torch.einsum("m,mnc->nc", probability, log_probs.exp())
    assert (arithmetic - geometric).abs().max() > 0.01  # which is another


def test_weight_scaling_misses_the_geometric_mean_of_a_deep_net_by_a_measured_gap():
    model, guide, x, log_probs, probability, mean_network = softmax_net(8, 2, 0.5)
    scaled = weight_scaling(model, guide, x)
    torch.testing.assert_close(scaled, mean_network, rtol=0, atol=1e-12)
    gap = float((scaled - geometric_mean(log_probs, probability)).abs().max())
    print(f"largest gap of weight scaling to the geometric mean of 256 sub-networks: {gap:.4f}")
    assert 1e-4 < gap < 0.5, gap


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("mode", ["weights", "local"])
def test_the_posterior_predictive_is_the_arithmetic_mean_of_all_sub_networks(layers, mode):
    model, guide, x, log_probs, probability, _ = softmax_net(6, layers, 0.3)
    arithmetic = torch.einsum("m,mnc->nc", probability, log_probs.exp())
    drawn = vd.posterior_predictive(model, guide, x, num_samples=800, mode=mode, return_sites=["probs"])["probs"]
    assert_mean_close(drawn, arithmetic)
    # Every draw is one of the 64 sub-networks: the same for all rows in mode "weights", one for each row in "local".
    distance = (drawn[:, None] - log_probs.exp()).abs().amax(-1)
    if mode == "weights":
        distance = distance.amax(-1, keepdim=True)
    nearest = distance.min(1)
    assert nearest.values.max() < 1e-12 and len(nearest.indices.unique()) > 50


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_gaussian_dropout_of_the_same_rate_has_the_first_two_moments(rate):
    loc = torch.randn(2, 3).double()
    alpha = torch.tensor(rate / (1 - rate), dtype=torch.float64)
    binary, gaussian = vd.BernoulliDropout(loc, rate), vd.CorrelatedDropoutNormal(loc, alpha.log())
    independent = vd.DropoutNormal(loc, alpha.log())
    for q in (gaussian, independent):
        torch.testing.assert_close(q.mean, binary.mean, rtol=0, atol=0)
        torch.testing.assert_close(q.variance, binary.variance, rtol=1e-12, atol=0)
        torch.testing.assert_close(q.dropout_rate.expand(2, 3), binary.dropout_rate.expand(2, 3), rtol=1e-12, atol=0)
    # Of the outputs of a layer, the covariance over units too: x_i**2 * alpha * loc_ji * loc_ki, summed over i.
    x = torch.randn(3).double()
    scaled, probability = masks(3, rate)
    outputs = torch.stack([F.linear(x, loc * mask) for mask in scaled]) - F.linear(x, loc)
    covariance = torch.einsum("m,mj,mk->jk", probability, outputs, outputs)
    torch.testing.assert_close(covariance, (loc * x) @ (loc * x).T * alpha, rtol=0, atol=1e-10)
    deviation = F.linear(x.expand(20_000, 3), random_weight(gaussian, "local")) - F.linear(x, loc)
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], covariance)
    model = linear_model(1, 1.0, torch.randn(2, 3).double())
    for correlated in (False, True):
        guide = AutoGaussianDropout(model, rate, correlated=correlated)
        guide(torch.ones(1, 3).double())
        assert guide.dropout_rate("net.weight").flatten().tolist() == pytest.approx([rate])
        assert guide.log_alpha("net.weight").exp().flatten().tolist() == pytest.approx([float(alpha)])


def normal(shape, loc=0.3, scale=0.7) -> Any:
    return dist.Normal(*torch.tensor([loc, scale], dtype=torch.float64)).expand(shape).to_event(len(shape))


@pytest.mark.parametrize("family", ["bernoulli", "concrete"])
@pytest.mark.parametrize("dim", [0, 1])
def test_binary_kl_to_a_normal_prior_is_the_published_formula(family, dim):
    """Expected squared distance of the two mixture components to the prior's mean, less the entropy of each mask."""
    shape, (m, scale) = (4, 3), (0.3, 0.7)
    q, _ = FAMILIES[family](shape, dim)
    theta, _, rate, _ = parameters(shape, shape[dim])
    expected = 0.0
    for a in np.ndindex(shape):
        p, w = float(rate[a[dim]]), float(theta[a])
        expected += ((1 - p) * (w / (1 - p) - m) ** 2 + p * m**2) / (2 * scale**2)
    expected += sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in rate.tolist())
    assert float(kl_divergence(q, normal(shape, m, scale))) == pytest.approx(expected, abs=1e-10)
    shared = vd.BernoulliDropout(theta, 0.25, unit_dim=dim)
    one = vd.BernoulliDropout(theta, torch.full((shape[dim],), 0.25).double(), unit_dim=dim)
    assert float(kl_divergence(shared, normal(shape))) == pytest.approx(float(kl_divergence(one, normal(shape))))


def test_binary_kl_is_the_limit_of_a_mixture_of_two_narrow_gaussians_up_to_a_constant():
    prior = normal((1, 1))

    def library(theta: float, rate: float) -> float:
        return float(kl_divergence(vd.BernoulliDropout(torch.full((1, 1), theta).double(), rate), prior))

    def mixture(theta: float, rate: float, width: float) -> float:
        at = theta / (1 - rate)

        def density(w: float) -> float:
            bells = (math.exp(-0.5 * ((w - m) / width) ** 2) for m in (0.0, at))
            return sum(c * b for c, b in zip((rate, 1 - rate), bells, strict=True)) / (width * math.sqrt(2 * math.pi))

        def integrand(w: float) -> float:
            return density(w) * (math.log(density(w)) - float(prior.base_dist.log_prob(torch.tensor(w).double())))

        ends = ((m - 10 * width, m + 10 * width) for m in (0.0, at))
        return sum(integrate.quad(integrand, *end, limit=200, epsabs=1e-11)[0] for end in ends)

    reference = (0.5, 0.3)
    for theta, rate in ((0.8, 0.3), (-0.6, 0.3), (0.5, 0.6)):
        errors = []
        for width in (0.1, 0.02):
            limit = mixture(theta, rate, width) - mixture(*reference, width)
            errors.append(abs(library(theta, rate) - library(*reference) - limit))
        assert errors[1] <= 1e-7 and errors[1] <= errors[0] + 1e-9, errors
