"""The two log-uniform priors."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate
from torch.distributions import Uniform, transform_to

from helpers.oracles import assert_mean_close, assert_variance_close
from pyro_vd import BayesianModule, ImproperLogUniform, TruncatedLogUniform

LOW, HIGH = 1e-2, 3.0


def truncated(low=LOW, high=HIGH, **kwargs) -> TruncatedLogUniform:
    return TruncatedLogUniform(
        torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), **kwargs
    )


def test_improper_log_prob_is_minus_log_size():
    value = torch.tensor([-3.0, -1e-6, 0.5, 2.0], dtype=torch.float64)
    log_prob = ImproperLogUniform().expand([4]).log_prob(value)
    torch.testing.assert_close(log_prob, torch.tensor([-math.log(abs(w)) for w in value], dtype=torch.float64))
    assert float(ImproperLogUniform().log_prob(torch.zeros(()))) == math.inf


def test_improper_is_scale_invariant():
    # The log density of log |w| is flat: log p(c * w) + log c = log p(w).
    value = torch.tensor([0.3, -2.0])
    torch.testing.assert_close(
        ImproperLogUniform().log_prob(7 * value) + math.log(7), ImproperLogUniform().log_prob(value)
    )


def test_improper_shapes():
    prior = ImproperLogUniform().expand([2, 3])
    assert prior.batch_shape == (2, 3) and prior.event_shape == ()
    event = prior.to_event(2)
    assert event.batch_shape == () and event.event_shape == (2, 3)
    value = torch.full((5, 2, 3), 2.0)
    torch.testing.assert_close(event.log_prob(value), torch.full((5,), -6 * math.log(2.0)))
    assert prior.log_prob(torch.tensor(2.0)).shape == (2, 3)  # broadcast over its batch
    assert event.expand([4]).batch_shape == (4,)
    assert prior.to_event(1).mask(False).batch_shape == (2,)


@pytest.mark.parametrize("draw", ["sample", "rsample", "to_event", "expand", "prior predictive"])
def test_improper_cannot_be_sampled_and_says_what_to_write(draw):
    prior = ImproperLogUniform()
    attempts = {
        "sample": prior.sample,
        "rsample": lambda: prior.rsample(torch.Size([3])),
        "to_event": prior.expand([2]).to_event(1).sample,
        "expand": prior.expand([2]).sample,
        "prior predictive": lambda: BayesianModule(torch.nn.Linear(2, 1), prior)(torch.ones(1, 2)),
    }
    with pytest.raises(ValueError, match="expected a distribution that can be sampled, got the improper") as error:
        attempts[draw]()
    for way_out in ("TruncatedLogUniform(low, high)", "Normal", "StudentT", "AutoSparseVD"):
        assert way_out in str(error.value)


def test_truncated_density_integrates_to_one():
    prior = truncated()

    def density(w):
        return float(prior.log_prob(torch.tensor(w, dtype=torch.float64)).exp())

    total = sum(integrate.quad(density, *ends, limit=200)[0] for ends in ((-HIGH, -LOW), (LOW, HIGH)))
    assert abs(total - 1) <= 1e-8
    assert integrate.quad(density, LOW, HIGH, limit=200)[0] == pytest.approx(0.5, abs=1e-8)  # the sign is uniform
    for outside in (0.0, LOW * 0.99, -LOW * 0.99, HIGH * 1.01, -HIGH * 1.01):
        assert density(outside) == 0


def test_truncated_density_is_inverse_to_the_size():
    value = torch.tensor([-2.0, 0.02, 1.0], dtype=torch.float64)
    expected = torch.tensor([-math.log(2 * abs(w) * math.log(HIGH / LOW)) for w in value], dtype=torch.float64)
    torch.testing.assert_close(truncated().log_prob(value), expected)


def test_truncated_gradient_of_log_prob_is_finite_everywhere():
    value = torch.tensor([0.0, 1.0, 5.0, -2.0], requires_grad=True)
    log_prob = TruncatedLogUniform(LOW, HIGH).log_prob(value)
    (gradient,) = torch.autograd.grad(log_prob[log_prob.isfinite()].sum(), value)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -1.0, 0.0, 0.5]))


def test_truncated_cdf_is_the_integral_and_icdf_its_inverse():
    prior = truncated()
    quantile = torch.cat([torch.linspace(0, 0.499, 50), torch.linspace(0.501, 1, 50)]).double()
    value = prior.icdf(quantile)
    assert (value.abs() >= LOW * (1 - 1e-12)).all() and (value.abs() <= HIGH * (1 + 1e-12)).all()
    assert (value[1:] > value[:-1]).all()
    torch.testing.assert_close(prior.cdf(value), quantile, rtol=0, atol=1e-12)
    inner = value[1:-1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(prior.cdf(inner).sum(), inner)
    torch.testing.assert_close(slope, prior.log_prob(inner).exp().detach(), rtol=1e-10, atol=0)
    between = torch.tensor([-LOW, -LOW / 2, 0.0, LOW / 2, LOW], dtype=torch.float64)
    torch.testing.assert_close(prior.cdf(between), torch.full((5,), 0.5, dtype=torch.float64), rtol=0, atol=1e-12)
    beyond = torch.tensor([-10.0, 10.0], dtype=torch.float64)
    assert prior.cdf(beyond).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_truncated_draws_lie_in_the_support(dtype):
    # The ends of torch.rand: a weight that rounds out of the support would have log_prob -inf.
    ends = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24, 1.0], dtype=dtype)
    for low, high in [(1e-2, 3.0), (1e-3, 0.7), (0.1, 2.0), (1e-6, 1e3), (0.3, 0.9)]:
        prior = TruncatedLogUniform(torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype))
        assert prior.log_prob(prior.icdf(ends)).isfinite().all(), (low, high)


def test_truncated_moments_of_draws():
    prior = truncated(0.1, 2.0)
    draws = prior.sample(torch.Size([40000]))
    assert_mean_close(draws, prior.mean)
    assert_mean_close(draws.square(), prior.variance)
    assert_variance_close(draws, prior.variance)
    assert_mean_close(draws.abs().log(), torch.tensor(0.5 * (math.log(0.1) + math.log(2.0)), dtype=torch.float64))
    assert_mean_close((draws > 0).double(), torch.tensor(0.5, dtype=torch.float64))
    # Quantiles of log |w|: uniform.
    scaled = (draws.abs().log() - math.log(0.1)) / math.log(20.0)
    for moment in (1, 2, 3):
        assert_mean_close(scaled.pow(moment), torch.tensor(1 / (moment + 1), dtype=torch.float64))


def test_truncated_variance_is_the_integral():
    second = 2 * integrate.quad(lambda w: w / (2 * math.log(HIGH / LOW)), LOW, HIGH)[0]
    assert float(truncated().variance) == pytest.approx(second, rel=1e-12)


def test_truncated_draws_are_reparameterised():
    high = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    uniform = torch.tensor([0.1, 0.7, 0.9], dtype=torch.float64)

    def draw(high):
        return TruncatedLogUniform(torch.tensor(0.1, dtype=torch.float64), high).icdf(uniform)

    assert torch.autograd.gradcheck(draw, high)
    sampled = TruncatedLogUniform(torch.tensor(0.1, dtype=torch.float64), high).rsample(torch.Size([3]))
    assert sampled.requires_grad and sampled.dtype == torch.float64


def test_truncated_shapes():
    prior = TruncatedLogUniform(torch.tensor([0.1, 0.2]), 2.0)
    assert prior.batch_shape == (2,) and prior.low.shape == prior.high.shape == (2,)
    wide = prior.expand([3, 2])
    assert wide.batch_shape == (3, 2) and wide.sample(torch.Size([5])).shape == (5, 3, 2)
    value = torch.full((3, 2), 0.15)
    assert wide.log_prob(value)[:, 1].eq(-math.inf).all()  # below 0.2
    torch.testing.assert_close(wide.log_prob(value)[0], prior.log_prob(value[0]))
    assert prior.to_event(1).log_prob(torch.ones(2)).shape == ()
    assert type(wide) is TruncatedLogUniform
    assert transform_to(prior.support)(torch.randn(2)).shape == (2,)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (math.nan, 1.0)])
def test_truncated_refuses_sizes_that_are_none(low, high):
    with pytest.raises(ValueError, match=r"TruncatedLogUniform: expected 0 < low < high, got low=.*high=.*sizes \|w\|"):
        TruncatedLogUniform(low, high)


def test_truncated_is_a_prior_of_a_pyro_model():
    net = torch.nn.Linear(3, 2, bias=False)
    bnn = BayesianModule(net, TruncatedLogUniform(0.1, 2.0))
    trace = pyro.poutine.trace(bnn).get_trace(torch.ones(1, 3))
    weight = trace.nodes["net.weight"]
    assert weight["value"].abs().min() >= 0.1 and weight["value"].abs().max() <= 2.0
    expected = -weight["value"].abs().log().sum() - 6 * math.log(2 * math.log(20.0))
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_truncated_tends_to_the_improper_prior():
    # log p differs by a constant inside the shell, whatever the shell.
    value = torch.tensor(np.geomspace(0.02, 2.5, 20))
    difference = truncated().log_prob(value) - ImproperLogUniform().log_prob(value)
    torch.testing.assert_close(difference, difference[:1].expand(20))
    # and the log of the size is uniform
    size = Uniform(math.log(LOW), math.log(HIGH)).log_prob(value.log()) - value.log() - math.log(2)
    torch.testing.assert_close(truncated().log_prob(value), size)
