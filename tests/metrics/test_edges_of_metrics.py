"""What metrics take that lies at an edge: probabilities above 1 by rounding, one bin for 1, labels of other types."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd

m = vd.metrics
SLOW = pytest.mark.slow


@pytest.mark.parametrize("metric", [m.calibration_error, m.nll, m.brier_score, pytest.param(m.auroc, marks=SLOW)])
def test_one_probability_above_one_by_rounding_changes_no_score(metric):
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.49, 0.255, 0.255], [0.0, 0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    rounded = probs.clone()
    rounded[-1, -1] += 1e-7
    assert metric(rounded, labels) == pytest.approx(metric(probs, labels), abs=1e-6)
    rounded = 1.0009 * probs  # in the tolerance of the sum
    assert metric(rounded, labels) == pytest.approx(metric(probs, labels), abs=1e-6)


def test_a_probability_of_one_is_in_the_last_bin_of_the_number_and_of_the_picture():
    probs, labels = torch.tensor([[1.0, 0.0], [0.95, 0.05]], dtype=torch.float64), torch.tensor([1, 0])
    # both between 0.9 and 1: half are right, mean probability 0.975
    for norm in ("l1", "l2", "max"):
        assert m.calibration_error(probs, labels, bins=10, norm=norm) == pytest.approx(0.475)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    ax = vd.plots.reliability_diagram(probs, labels, bins=10, ax=Figure().subplots())
    assert ax.get_title() == "2 examples, calibration error 47.5 %"
    assert [text.get_text() for text in ax.texts] == ["2"]


def test_a_probability_on_the_edge_of_two_bins_is_in_the_upper_one():
    probs = torch.tensor([[0.75, 0.25], [0.6, 0.4]], dtype=torch.float64)
    # bins from 0.5 and from 0.75: gaps 0.25 and 0.6, as one bin 0.5 - 0.675
    assert m.calibration_error(probs, torch.tensor([0, 1]), bins=4) == pytest.approx((0.25 + 0.6) / 2)
    assert m.calibration_error(probs, torch.tensor([0, 1]), bins=1) == pytest.approx(0.175)


FLAGS = torch.tensor([True, False, True])
OBSERVED = {
    "Bernoulli": (lambda p: dist.Bernoulli(p / 10), FLAGS),
    "Bernoulli of logits": (lambda p: dist.Bernoulli(logits=p), FLAGS),
    "independent Bernoulli": (lambda p: dist.Bernoulli(p / 10).to_event(1), FLAGS),
    "Normal": (lambda p: dist.Normal(p, 1.0), FLAGS),
    "Poisson, whose uint8 overflows": (lambda p: dist.Poisson(100 * p), torch.tensor([255, 0, 3], dtype=torch.uint8)),
    "Binomial": (lambda p: dist.Binomial(300, p / 10), torch.tensor([255, 0, 3], dtype=torch.uint8)),
    "Laplace": (lambda p: dist.Laplace(p, 1.0), FLAGS),
    "Categorical": (lambda p: dist.Categorical(p[..., None] ** torch.arange(2)), FLAGS),
    "mixture": (
        lambda p: dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2, 3, 2)), dist.Bernoulli(p[..., None] / torch.tensor([10, 20]))
        ),
        FLAGS,
    ),
}


@pytest.mark.parametrize("case", OBSERVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_and_truth_values_are_observed_as_the_numbers_they_are(case, dtype):
    make, value = OBSERVED[case]
    prediction = vd.Predictive(make(torch.linspace(1, 3, 6, dtype=dtype).reshape(2, 3)), "y")
    types = {value.dtype, torch.int64} | ({torch.int8} if value.dtype is torch.bool else set())
    state = torch.get_rng_state()
    for other in types:
        torch.testing.assert_close(prediction.log_prob(value.to(other)), prediction.log_prob(value.to(dtype)))
    assert torch.equal(state, torch.get_rng_state()), "no random number of the caller is spent"
    assert m.nll(prediction, value) == pytest.approx(m.nll(prediction, value.to(dtype)))
    if "Categorical" not in case:
        torch.testing.assert_close(prediction.cdf(value), prediction.cdf(value.to(dtype)))


def test_more_places_of_labels_are_truth_values():
    bernoulli = vd.Predictive(dist.Bernoulli(torch.tensor([[0.9, 0.2, 0.7]])), "y")
    assert m.brier_score(bernoulli, FLAGS) == pytest.approx(m.brier_score(bernoulli, FLAGS.float()))
    hot = vd.Predictive(dist.OneHotCategorical(torch.tensor([[[0.7, 0.3], [0.1, 0.9]]])), "y")
    assert m.brier_score(hot, torch.eye(2).bool()) == pytest.approx((0.18 + 0.02) / 2)
    assert m.nll(hot, torch.eye(2).bool()) == pytest.approx(-(math.log(0.7) + math.log(0.9)) / 2)
    pytest.importorskip("arviz_base")
    tree = vd.to_arviz({"y": bernoulli}, observed={"y": FLAGS})
    found = tree["log_likelihood"]["y"].values
    np.testing.assert_allclose(found[0, 0], np.log([0.9, 0.8, 0.7]), rtol=1e-6)


@SLOW
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.bool_])
def test_labels_of_any_type_at_predictions_of_numpyro(dtype):
    jnp = pytest.importorskip("jax.numpy")
    import numpyro.distributions as ndist

    import pyro_vd.numpyro as mirror

    y = np.array([1, 0, 1], dtype)
    bernoulli = mirror.Predictive(ndist.Bernoulli(jnp.array([[0.9, 0.2, 0.7]])), "y")
    assert m.nll(bernoulli, y) == pytest.approx(-np.log([0.9, 0.8, 0.7]).mean(), rel=1e-5)
    most = np.full(3, 127 if dtype is np.int8 else 255).astype(dtype)  # one more overflows
    counts = mirror.Predictive(ndist.Binomial(300, logits=jnp.ones((1, 3))), "y")
    assert m.nll(counts, most) == pytest.approx(m.nll(counts, most.astype(np.float32)))


def test_nll_refuses_several_sets_of_labels():
    prediction = vd.Predictive(dist.Normal(torch.zeros(3, 2), 1.0), "y")
    for shape in ((7, 2), (1, 2), (1,), ()):
        with pytest.raises(ValueError, match=r"nll: expected labels of shape \(2,\), .* got .*write -prediction"):
            m.nll(prediction, torch.zeros(shape))


LOGITS = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
TEMPERATURE = {
    "a transposed batch": (dist.Categorical(logits=LOGITS), torch.zeros(3, 2), r"of shape \(2, 3\), .* got \(3, 2\)"),
    "a flat batch": (dist.Categorical(logits=LOGITS), torch.zeros(6), r"of shape \(2, 3\), .* got \(6,\)"),
    "an event": (dist.Bernoulli(logits=LOGITS[0]).to_event(1), torch.zeros(5, 3), r"\(3, 5\), .* got \(5, 3\)"),
    "a column of labels": (LOGITS[0], torch.zeros(3, 1), r"of shape \(3,\), .* got \(3, 1\)"),
    "no batch": (dist.Categorical(logits=LOGITS[:, 0, 0]), torch.tensor(0), "give more validation data"),
    "no classes": (
        dist.ContinuousBernoulli(logits=LOGITS[0]),
        torch.zeros(3, 5),
        "of classes, got ContinuousBernoulli",
    ),
    "relaxed": (
        dist.RelaxedBernoulli(torch.tensor(0.5), logits=LOGITS[0]),
        torch.zeros(3, 5),
        "of classes, got Relaxed",
    ),
}


@pytest.mark.parametrize("case", TEMPERATURE)
def test_a_temperature_of_what_does_not_fit_is_refused(case):
    logits, labels, message = TEMPERATURE[case]
    given = logits if isinstance(logits, torch.Tensor) else vd.Predictive(logits, "y")
    with pytest.raises(ValueError, match=message):
        m.fit_temperature(given, labels)


def test_a_temperature_of_a_batch_of_two_axes_is_that_of_its_examples_in_order():
    labels = dist.Categorical(logits=LOGITS[0]).sample()
    flat = m.fit_temperature(LOGITS.reshape(4, 6, 5), labels.reshape(6))
    for likelihood in (dist.Categorical, dist.OneHotCategorical):
        assert m.fit_temperature(vd.Predictive(likelihood(logits=LOGITS), "y"), labels) == pytest.approx(flat)
    hot = torch.nn.functional.one_hot(labels, 5).bool()
    assert m.fit_temperature(vd.Predictive(dist.OneHotCategorical(logits=LOGITS), "y"), hot) == pytest.approx(flat)


def test_a_small_conformal_probability_has_the_smallest_score():
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0])
    assert m.conformal_threshold(probs, labels, 1e-12) == pytest.approx(0.1)
    assert m.conformal_threshold(probs, labels, 0.5) == pytest.approx(0.4)
