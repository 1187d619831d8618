"""Draws of every distribution against its moments and density, and their gradients against what is known.

Statistical tests have a fixed seed and bounds of 5 standard errors: all of them together fail by chance with odds below
1e-4.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import biject_to, kl_divergence

import pyro_vd as vd
from helpers.conformance import ONE_WEIGHT, POSTERIORS, ROWS, SHAPE, WITH_DENSITY, between, fixed, make, values


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_draws_have_shape_dtype_device_and_support(row, dtype):
    q = fixed(row, dtype)
    for sample_shape in ((), (4,), (4, 1)):
        for draw in (q.sample(torch.Size(sample_shape)), q.rsample(torch.Size(sample_shape)), q(sample_shape)):
            assert draw.shape == q.shape(sample_shape) == (*sample_shape, *(SHAPE if row in POSTERIORS else (3, 2)))
            assert draw.dtype == dtype and draw.device.type == "cpu"
            assert bool(q.support.check(draw).all()) and q.support.event_dim == q.event_dim
    for moment in (q.mean, q.variance):
        assert moment.dtype == dtype and moment.expand(q.shape()).shape == q.shape()
    biject_to(q.support)(torch.zeros(q.shape()))


@pytest.mark.parametrize("row", ROWS)
def test_draws_have_the_mean_and_the_variance(row):
    q = fixed(row)
    draws = q.sample(torch.Size((200_000,)))
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - q.mean).abs() < 5 * error).all())
    squares = (draws - q.mean).square()
    # The moments of ConcreteDropout are those of the binary limit, which a temperature of 0.002 is near.
    slack = 0.01 * q.variance if row == "ConcreteDropout" else 0.0
    assert bool(((squares.mean(0) - q.variance).abs() < 5 * squares.std(0) / len(draws) ** 0.5 + slack).all())


@pytest.mark.parametrize("row", ROWS)
def test_has_rsample_means_that_the_gradient_is_right_in_every_argument(row):
    """By the mean of w and of w**2, whose derivatives are known; those of a smooth draw are exact in expectation."""
    q = make(row)
    assert q.has_rsample
    arguments = [value for value in ROWS[row][1].values() if value.requires_grad]
    options = {**ROWS[row][2], **({"temperature": 0.4} if row == "ConcreteDropout" else {})}
    q = ROWS[row][0](**ROWS[row][1], **options)
    coefficient = between(*q.shape(), low=-1, high=1)
    if row == "ConcreteDropout":  # moments of the relaxation by quadrature over its uniform number
        u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        logit = ROWS[row][1]["logit_dropout_rate"]
        s = torch.sigmoid((torch.logit(u)[:, None] - logit) / 0.4) / torch.sigmoid(-logit)
        mean, square = s.mean(0)[:, None] * q.loc, (s**2).mean(0)[:, None] * q.loc**2
    else:
        mean, square = q.mean, q.variance + q.mean**2
    expected = torch.autograd.grad((coefficient * (mean + square)).sum(), arguments, allow_unused=True)
    gradients = []
    for _ in range(40):
        w = q.rsample(torch.Size((2000,)))
        gradients.append(torch.autograd.grad((coefficient * (w + w**2)).mean(0).sum(), arguments, retain_graph=True))
    for known, drawn in zip(expected, zip(*gradients, strict=True), strict=True):
        drawn = torch.stack(drawn)
        error = drawn.std(0) / len(drawn) ** 0.5
        assert bool(((drawn.mean(0) - known).abs() < 5 * error + 1e-9).all())


def test_a_rate_with_a_gradient_has_no_rsample():
    rate = between(3).requires_grad_()
    q = vd.BernoulliDropout(values(*SHAPE), rate)
    assert not q.has_rsample and not q().requires_grad
    for draw in (q.rsample, lambda: q.noise().draw(torch.Size()), lambda: q.draw_units(torch.Size())):
        with pytest.raises(ValueError, match="expected a dropout_rate that is given, got a dropout_rate with"):
            draw()
    with torch.no_grad():
        assert q.rsample().shape == SHAPE
    assert vd.BernoulliDropout(values(*SHAPE), rate.detach()).rsample().requires_grad


@pytest.mark.parametrize("estimator", ["local", "shared", "per_example"])
def test_a_learned_rate_is_refused_by_the_elbo_under_every_estimator(estimator):
    rate, x = torch.tensor([0.5, 0.2, 0.3], requires_grad=True), torch.ones(4, 3)

    def model():
        weight = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x @ weight.T, 1.0).to_event(2), obs=torch.zeros(4, 2))

    def guide():
        pyro.sample("w", vd.BernoulliDropout(torch.ones(2, 3), rate))

    with pytest.raises((ValueError, NotImplementedError), match="a dropout_rate with a gradient.*ConcreteDropout"):
        vd.TraceVD_ELBO(estimator).loss(model, guide)
    rate.requires_grad_(False)
    assert math.isfinite(vd.TraceVD_ELBO(estimator).loss(model, guide))


@pytest.mark.parametrize("row", ["BernoulliDropout", "ConcreteDropout"])
def test_a_learned_scale_of_the_prior_of_dropout_is_refused(row):
    """The published KL leaves out a term of it; a learned mean is right, and is compared with finite differences."""
    q, mean = fixed(row), values(*SHAPE)
    scale = between(*SHAPE).requires_grad_()
    with pytest.raises(ValueError, match=f"{row}: expected a Normal prior with a scale that is given, got .*AutoMeanF"):
        kl_divergence(q, dist.Normal(mean, scale).to_event(2))
    given = scale.detach()
    assert gradcheck(lambda m: kl_divergence(q, dist.Normal(m, given).to_event(2)), mean)
    with torch.no_grad():
        assert kl_divergence(q, dist.Normal(mean, scale).to_event(2)) > 0


@pytest.mark.parametrize("row", ["DropoutNormal", "DropoutNormal, additive", "LowRankNormal"])
def test_a_learned_normal_prior_of_gaussian_weights(row):
    q = fixed(row)
    q = q if q.event_dim else q.to_event(2)
    mean, scale = values(*SHAPE), between(*SHAPE).requires_grad_()
    assert gradcheck(lambda m, s: kl_divergence(q, dist.Normal(m, s).to_event(2)), (mean, scale))


@pytest.mark.parametrize("row", WITH_DENSITY)
def test_log_prob_by_finite_differences_in_every_argument(row):
    cls, arguments, more = ROWS[row]
    names, w = list(arguments), fixed(row).sample(torch.Size((2,))).requires_grad_()

    def log_prob(w, *given):
        return cls(**dict(zip(names, given, strict=True)), **more).log_prob(w)

    assert gradcheck(log_prob, (w, *arguments.values()))


@pytest.mark.parametrize("row", WITH_DENSITY)
def test_log_prob_has_the_batch_shape_and_broadcasts(row):
    q = fixed(row)
    draws = q.sample(torch.Size((5,)))
    log_prob = q.log_prob(draws)
    assert log_prob.shape == (5, *q.batch_shape)
    torch.testing.assert_close(log_prob[3], q.log_prob(draws[3]))


@pytest.mark.parametrize("row", ["DropoutNormal", "TruncatedLogUniform"])
def test_densities_are_those_of_the_draws(row):
    """P(w <= c) of the draws, and by the cdf, and its derivative is the density."""
    q = fixed(row)
    draws = q.sample(torch.Size((100_000,)))
    for at in (-0.7, 0.3, 1.2):
        below = q.cdf(torch.tensor(at, dtype=torch.float64)).expand(q.batch_shape)
        share = (draws <= at).double().mean(0)
        assert bool(((share - below).abs() < 5 * (below * (1 - below) / len(draws)).sqrt() + 1e-12).all())
        point = torch.full(q.batch_shape, at, dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(q.cdf(point).sum(), point)[0]
        torch.testing.assert_close(slope, q.log_prob(point.detach()).exp(), rtol=1e-9, atol=1e-12)
    inner = between(*q.batch_shape, low=0.05, high=0.95)
    torch.testing.assert_close(q.cdf(q.icdf(inner)), inner)


@pytest.mark.parametrize("row", [row for row in ONE_WEIGHT if row != "LowRankNormal"])
def test_a_density_that_is_missing(row):
    q = fixed(row)
    for error in (NotImplementedError, ValueError):
        with pytest.raises(error, match=f"{row}: expected a use of its analytic KL.*has no density"):
            q.log_prob(q.sample())
    with pytest.raises(NotImplementedError):
        q.entropy()
