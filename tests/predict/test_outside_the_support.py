"""Outside the support of a likelihood: 0 below and 1 above; NaN in a parameter is an error; random numbers stay put."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vd.predict import Predictive

ONE = torch.ones(2, 1)
OUTSIDE = [
    (dist.Weibull(ONE, ONE), -1.0, 0.0),
    (dist.Weibull(ONE, 2 * ONE), -1.0, 0.0),
    (dist.Kumaraswamy(2 * ONE, 2 * ONE), 1.5, 1.0),
    (dist.Kumaraswamy(2 * ONE, 2 * ONE), -0.5, 0.0),
    (dist.Exponential(ONE), -1.0, 0.0),
    (dist.Gamma(ONE, ONE), -1.0, 0.0),
    (dist.LogNormal(ONE, ONE), -1.0, 0.0),
    (dist.HalfNormal(ONE), -1.0, 0.0),
    (dist.Pareto(ONE, ONE), 0.5, 0.0),
    (dist.Uniform(0 * ONE, ONE), 2.0, 1.0),
    (dist.Uniform(0 * ONE, ONE), -2.0, 0.0),
    (
        dist.TransformedDistribution(
            dist.Normal(ONE, ONE), [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(1.0, 2.0)]
        ),
        0.5,
        0.0,
    ),
    (
        dist.MixtureSameFamily(
            dist.Categorical(torch.full((2, 1, 2), 0.5)),
            dist.Uniform(torch.zeros(2, 1, 2), torch.tensor([1.0, 3.0]).expand(2, 1, 2)),
        ),
        2.0,
        0.5 + 0.5 * 2 / 3,
    ),
]


@pytest.mark.parametrize("draws, value, expected", OUTSIDE, ids=lambda v: type(v).__name__)
def test_the_cdf_outside_the_support(draws, value, expected):
    assert Predictive(draws, "y").cdf(torch.tensor([value])).item() == pytest.approx(expected, abs=1e-6)


def test_the_cdf_where_the_supports_of_draws_differ():
    y = Predictive(dist.Uniform(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]])), "y")
    assert y.cdf(torch.tensor([2.0])).item() == 0.75 and y.quantile(0.75).item() == pytest.approx(2.0, abs=1e-5)


NAN = torch.tensor([[1.0], [float("nan")]])
QUANTITIES = {
    "log_prob": lambda y: y.log_prob(torch.tensor([0.5])),
    "cdf": lambda y: y.cdf(torch.tensor([0.5])),
    "quantile": lambda y: y.quantile(0.5),
    "interval": lambda y: y.interval(0.5),
}


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
@pytest.mark.parametrize(
    "likelihood",
    [
        lambda: dist.Normal(NAN, ONE, validate_args=False),
        lambda: dist.Normal(ONE, NAN, validate_args=False),
        lambda: dist.Exponential(NAN, validate_args=False),
        lambda: dist.Uniform(NAN - 1.0, NAN, validate_args=False),
        lambda: dist.Laplace(NAN, ONE, validate_args=False),
        lambda: dist.StudentT(3.0, NAN, ONE, validate_args=False),
    ],
    ids=["Normal loc", "Normal scale", "Exponential", "Uniform", "Laplace", "StudentT, by samples"],
)
def test_nan_in_a_parameter_of_one_draw(likelihood, quantity):
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="'y'.*NaN in"):
        quantity(Predictive(likelihood(), "y"))


def test_nan_under_a_mask_does_not_count():
    with pyro.validation_enabled(False):
        draws = dist.Normal(NAN.T.expand(2, 2), 1.0, validate_args=False).mask(torch.tensor([True, False]))
        assert Predictive(draws, "y").log_prob(torch.ones(2))[1] == 0.0


@pytest.mark.parametrize("likelihood", [dist.Normal(ONE, ONE), dist.StudentT(3.0, ONE, ONE)])
def test_a_quantity_leaves_random_numbers_where_they_were(likelihood):
    y, before = Predictive(likelihood, "y"), torch.get_rng_state()
    y.cdf(torch.tensor([0.5])), y.quantile(0.5), y.interval(0.9)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("probability", ["a", None, [0.5], "0.5"])
def test_a_probability_is_a_number(probability):
    y = Predictive(dist.Normal(ONE, ONE), "y")
    for quantity in (y.quantile, y.interval):
        with pytest.raises(TypeError, match="probability: expected a number between 0 and 1"):
            quantity(probability)


def test_the_advice_on_nan_in_a_value():
    with pytest.raises(ValueError, match="got NaN; take them out$"):
        Predictive(dist.Normal(ONE, ONE), "y").cdf(torch.tensor([float("nan")]))
