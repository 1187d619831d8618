"""Predictive: densities, moments, quantiles and parts of entropy of mixtures, against quadrature and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, optimize, stats

from helpers.oracles import assert_mean_close, assert_variance_close, standard_errors
from pyro_vd.predict import Predictive

# Means and standard deviations of five parts, for three examples: near each other, apart, and of unequal widths.
LOCS = torch.tensor([[0.0, 0.2, -0.1, 0.1, 0.3], [-4.0, 0.0, 5.0, 1.0, 8.0], [0.0, 1.0, 2.0, 3.0, 4.0]]).T.double()
SCALES = torch.tensor([[1.0, 1.0, 1.1, 0.9, 1.0], [1.0, 0.5, 1.0, 2.0, 0.7], [0.1, 0.4, 1.6, 3.2, 0.2]]).T.double()


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def gaussians(event: bool = False) -> Predictive:
    draws = dist.Normal(LOCS, SCALES)
    return Predictive(draws.to_event(1) if event else draws, "y")


def density(example: int):
    parts = stats.norm(LOCS[:, example].numpy(), SCALES[:, example].numpy())
    return lambda y: parts.pdf(y).mean(), lambda y: parts.cdf(y).mean()


def integral(function, example: int) -> float:
    edges = sorted({-60.0, 60.0, *(float(m + k * s) for m, s in zip(LOCS[:, example], SCALES[:, example], strict=True)
                                  for k in (-8, -2, 0, 2, 8))})  # fmt: skip
    return sum(integrate.quad(function, a, b, epsabs=1e-12, limit=200)[0] for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("example", range(3))
def test_a_mixture_of_gaussians_against_quadrature(example):
    """Density, mean, variance, quantiles, entropy and its parts, to 1e-8 (entropy: 1e-6)."""
    y = gaussians()
    pdf, cdf = density(example)
    for value in (-3.0, 0.1, 2.5):
        assert y.log_prob(torch.full((3,), value))[example].item() == pytest.approx(math.log(pdf(value)), rel=1e-10)
    mean = integral(lambda v: v * pdf(v), example)
    assert y.mean[example].item() == pytest.approx(mean, rel=1e-8)
    variance = integral(lambda v: (v - mean) ** 2 * pdf(v), example)
    assert y.variance[example].item() == pytest.approx(variance, rel=1e-8)
    assert y.aleatoric_variance[example].item() == pytest.approx(SCALES[:, example].square().mean().item())
    for level in (0.5, 0.9, 0.99):
        low, high = y.interval(level)
        for end, p in ((low, 0.5 - level / 2), (high, 0.5 + level / 2)):
            expected = optimize.brentq(lambda v, p=p: cdf(v) - p, -60, 60, xtol=1e-13)
            assert end[example].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    entropy = integral(lambda v: -pdf(v) * math.log(pdf(v)) if pdf(v) > 0 else 0.0, example)
    assert y.entropy()[example].item() == pytest.approx(entropy, abs=1e-6)
    each = (0.5 * math.log(2 * math.pi * math.e) + SCALES[:, example].log()).mean().item()
    assert y.expected_entropy()[example].item() == pytest.approx(each)
    assert y.mutual_information()[example].item() == pytest.approx(entropy - each, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "parameters", "reference"),
    [
        (dist.Gamma, ([2.0, 5.0], [1.0, 0.5]), [stats.gamma(2), stats.gamma(5, scale=2)]),
        (dist.LogNormal, ([0.0, 1.0], [0.5, 1.0]), [stats.lognorm(0.5), stats.lognorm(1.0, scale=math.e)]),
        (dist.Cauchy, ([0.0, 3.0], [1.0, 2.0]), [stats.cauchy(0), stats.cauchy(3, 2)]),
        (dist.Uniform, ([0.0, 2.0], [1.0, 5.0]), [stats.uniform(0), stats.uniform(2, 3)]),
        (dist.HalfNormal, ([1.0, 3.0],), [stats.halfnorm(), stats.halfnorm(scale=3)]),
    ],
)
def test_quantiles_by_bisection(family, parameters, reference):
    """Of families with and without an inverse cdf, on all supports: where scipy's mixture cdf is the probability."""
    y = Predictive(family(*(torch.tensor(p).unsqueeze(-1) for p in parameters)), "y")
    assert y.quantile_method == "bisection"
    for p in (0.001, 0.05, 0.3, 0.7, 0.999):
        assert np.mean([one.cdf(y.quantile(p).item()) for one in reference]) == pytest.approx(p, abs=1e-9)


def test_quantiles_from_samples():
    """Of a family without a cdf. The order statistic of 4,000 samples has a cdf within its standard error of p."""
    y = Predictive(dist.StudentT(5.0, torch.tensor([[0.0], [4.0]]), 1.0), "y")
    assert y.quantile_method == "samples"
    low, high = y.interval(0.8)
    for end, p in ((low, 0.1), (high, 0.9)):
        cdf = np.mean([stats.t(5, loc).cdf(end.item()) for loc in (0.0, 4.0)])
        assert abs(cdf - p) < standard_errors(2) * math.sqrt(p * (1 - p) / 4000) + 1 / 4000
    counts = Predictive(dist.Poisson(torch.tensor([[3.0], [3.0]])), "y").quantile(0.5)
    assert counts.item() == 3.0


def test_elements_of_an_event():
    """Moments and intervals are those of each element; densities those of the whole event."""
    whole, single = gaussians(event=True), gaussians()
    for name in ("mean", "variance", "epistemic_variance"):
        assert torch.equal(getattr(whole, name), getattr(single, name))
    assert torch.equal(whole.interval(0.9)[0], single.interval(0.9)[0])
    value = torch.tensor([0.1, 0.2, 0.3])
    expected = dist.Normal(LOCS, SCALES).log_prob(value).sum(-1).logsumexp(0) - math.log(5)
    torch.testing.assert_close(whole.log_prob(value), expected)
    joint = Predictive(dist.MultivariateNormal(LOCS, torch.diag_embed(SCALES.square())), "y")
    torch.testing.assert_close(joint.log_prob(value), expected)
    torch.testing.assert_close(joint.interval(0.9)[1], single.interval(0.9)[1])


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda p: dist.Categorical(probs=p), torch.arange(3)),
        (lambda p: dist.OneHotCategorical(probs=p), torch.eye(3)),
        (lambda p: dist.Bernoulli(p[..., 0]), torch.tensor([0.0, 1.0])),
        (lambda p: dist.Binomial(4, p[..., 0]), torch.arange(5.0)),
        (lambda p: dist.Bernoulli(p).to_event(1), torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))),
        (lambda p: dist.Categorical(probs=torch.stack([p, p.flip(-1)], -2)).to_event(1),
         torch.tensor(list(itertools.product(range(3), repeat=2)))),
    ],
)  # fmt: skip
def test_parts_of_entropy_by_enumeration(make, values):
    """H of the mixture, the mean H of the parts, and their difference, over every outcome."""
    probs = torch.tensor(
        [[[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]], [[0.1, 0.4, 0.5], [0.2, 0.3, 0.5]], [[0.3] * 2 + [0.4]] * 2]
    )
    draws, values = make(probs), values.to(torch.float64 if values.is_floating_point() else torch.int64)
    # 3 draws, 2 examples, 3 classes, one of them impossible
    each = torch.stack(
        [torch.stack([draws.log_prob(v)[..., i] for v in values]) for i in range(2)]
    ).exp()  # example, value, draw
    torch.testing.assert_close(each.sum(1), torch.ones(2, 3))
    entropy = -torch.xlogy(each.mean(-1), each.mean(-1)).sum(-1)
    expected = -torch.xlogy(each, each).sum(1).mean(-1)
    y = Predictive(draws, "y")
    torch.testing.assert_close(y.entropy(), entropy)
    torch.testing.assert_close(y.expected_entropy(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(y.mutual_information(), entropy - expected, atol=1e-6, rtol=1e-6)


def test_probs():
    probs = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]])
    torch.testing.assert_close(Predictive(dist.Categorical(probs=probs), "y").probs, torch.tensor([[0.7, 0.3]]))
    torch.testing.assert_close(Predictive(dist.OneHotCategorical(probs=probs), "y").probs, torch.tensor([[0.7, 0.3]]))
    torch.testing.assert_close(Predictive(dist.Bernoulli(probs[..., 0]), "y").probs, torch.tensor([0.7]))
    torch.testing.assert_close(Predictive(dist.Bernoulli(probs).to_event(1), "y").probs, torch.tensor([[0.7, 0.3]]))


def test_samples_are_of_the_mixture_and_each_of_one_draw():
    """Moments of 20,000; in one sample all examples belong to the same draw."""
    y = gaussians()
    samples = y.sample((20000,))
    assert samples.shape == (20000, 3) and y.sample().shape == (3,) and y.sample(2).shape == (2, 3)
    assert_mean_close(samples, y.mean)
    assert_variance_close(samples, y.variance)
    far = Predictive(dist.Normal(torch.tensor([[0.0, 0.0], [100.0, 100.0]]), 1.0), "y").sample((50,))
    which = far > 50
    assert torch.equal(which[:, 0], which[:, 1]) and 0 < which[:, 0].sum() < 50


def test_values_with_sample_dimensions():
    y, values = gaussians(), torch.randn(4, 2, 3)
    expected = torch.stack([torch.stack([y.log_prob(v) for v in row]) for row in values])
    torch.testing.assert_close(y.log_prob(values), expected)


def test_a_mask_counts_in_the_density_alone():
    mask = torch.tensor([True, False, True])
    y = Predictive(dist.Normal(LOCS, SCALES).mask(mask.expand(5, 3)), "y")
    value = torch.tensor([0.1, math.nan, 0.3])
    assert y.log_prob(value)[1] == 0.0
    assert torch.equal(y.log_prob(value)[mask], gaussians().log_prob(torch.tensor([0.1, 0.0, 0.3]))[mask])
    assert torch.equal(y.mean, gaussians().mean) and torch.equal(y.entropy(), gaussians().entropy())


def test_what_a_likelihood_does_not_have():
    classes = Predictive(dist.Categorical(torch.ones(2, 3, 4)), "label")
    for call in (lambda: classes.mean, lambda: classes.variance, lambda: classes.interval(0.9)):
        with pytest.raises(ValueError, match="site 'label': expected a likelihood with .*got Categorical; there is "
                           "log_prob, sample, probs, entropy"):  # fmt: skip
            call()
    with pytest.raises(ValueError, match="with probabilities of classes, got Normal; there is log_prob, sample, mean"):
        _ = gaussians().probs
    with pytest.raises(ValueError, match=r"with an entropy.*got Poisson; there is.*log_prob\(sample"):
        Predictive(dist.Poisson(torch.ones(2, 3)), "y").entropy()
    with pytest.raises(ValueError, match="with an entropy.*to_event"):
        Predictive(dist.Bernoulli(torch.full((2, 3, 20), 0.5)).to_event(1), "y").mutual_information()
    with pytest.raises(ValueError, match="whose mean is defined, got NaN in 6 of 6"):
        _ = Predictive(dist.Cauchy(torch.ones(2, 3), 1.0), "y").mean
    for level in (0.0, 1.0, 90):
        with pytest.raises(ValueError, match="probability: expected a number between 0 and 1"):
            gaussians().interval(level)


@pytest.mark.parametrize("value", [torch.zeros(3, 1), torch.zeros(4), torch.tensor(0.0)])
def test_a_value_of_another_shape(value):
    with pytest.raises(
        ValueError, match=r"site 'y': expected a value of shape \(3,\), any sample shape before it, got"
    ):
        gaussians().log_prob(value)


def test_values_outside_the_support():
    with pytest.raises(ValueError, match="site 'y': expected values in the support of Poisson, got 1 of 3 outside"):
        Predictive(dist.Poisson(torch.ones(2, 3)), "y").log_prob(torch.tensor([0.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match="got 1 of 3 outside it in every draw, or NaN"):
        gaussians().log_prob(torch.tensor([0.0, math.nan, 2.0]))
    # In the support of one draw of two.
    y = Predictive(dist.Pareto(torch.tensor([[1.0], [3.0]]), 2.0), "y")
    expected = math.log(2 * 2.0**-3 / 2)
    assert y.log_prob(torch.tensor([2.0])).item() == pytest.approx(expected)
    with pytest.raises(TypeError, match="expected a tensor, got float"):
        y.log_prob(2.0)
