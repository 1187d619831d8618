"""pyro_vd.metrics against loops, NumPy and SciPy; predictions of both backends; refusals."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

import pyro_vd as vd

m = vd.metrics


def class_draws(draws: int = 4, examples: int = 300, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits and labels that they say something of."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(examples, classes, generator=generator).double()
    labels = dist.Categorical(logits=logits / 2).sample()
    return logits + torch.randn(draws, examples, classes, generator=generator), labels


def test_nll_and_brier_score_are_those_of_the_mean_over_draws():
    logits, labels = class_draws()
    prediction, probs = vd.Predictive(dist.Categorical(logits=logits), "y"), logits.softmax(-1).mean(0).numpy()
    picked = probs[np.arange(300), labels.numpy()]
    expected = sum(((p - np.eye(3)[y]) ** 2).sum() for p, y in zip(probs, labels, strict=True)) / 300
    for given in (prediction, torch.tensor(probs), probs):
        assert m.nll(given, labels) == pytest.approx(-np.log(picked).mean(), rel=1e-6)
        assert m.brier_score(given, labels.numpy()) == pytest.approx(expected, rel=1e-6)


def test_nll_of_numbers_sums_an_event_and_takes_the_mean_over_examples():
    locs, y = torch.randn(7, 5, 2).double(), torch.randn(5, 2).double()
    densities = stats.norm(locs.numpy(), 0.3).pdf(y.numpy()).prod(-1).mean(0)
    prediction = vd.Predictive(dist.Normal(locs, 0.3).to_event(1), "y")
    assert m.nll(prediction, y) == pytest.approx(-np.log(densities).mean(), rel=1e-6)


@pytest.mark.parametrize("binary", ["array", "Bernoulli"])
def test_two_classes_may_be_one_probability(binary):
    p, y = torch.tensor([0.1, 0.7, 0.6]), torch.tensor([0.0, 1.0, 0.0])
    given = p if binary == "array" else vd.Predictive(dist.Bernoulli(p.expand(3, 3)), "y")
    assert m.brier_score(given, y) == pytest.approx(2 * (0.01 + 0.09 + 0.36) / 3, rel=1e-6)
    assert m.nll(given, y) == pytest.approx(-np.log([0.9, 0.7, 0.4]).mean(), rel=1e-6)
    assert m.conformal_sets(given, 0.5).tolist() == [[True, False], [False, True], [False, True]]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_calibration_error_against_a_loop_over_bins(norm):
    logits, labels = class_draws()
    probs = logits.softmax(-1).mean(0)
    sure, right = probs.max(-1).values.numpy(), (probs.argmax(-1) == labels).double().numpy()
    gaps, shares = [], []
    for low in np.linspace(0, 1, 11)[:-1]:
        inside = (sure >= low) & (sure < low + 0.1)
        if inside.any():
            gaps.append(abs(sure[inside].mean() - right[inside].mean()))
            shares.append(inside.mean())
    gaps, shares = np.array(gaps), np.array(shares)
    expected = {"l1": (gaps * shares).sum(), "l2": math.sqrt((gaps**2 * shares).sum()), "max": gaps.max()}[norm]
    assert m.calibration_error(probs, labels, bins=10, norm=norm) == pytest.approx(expected, rel=1e-5)
    assert m.accuracy(probs, labels) == pytest.approx(right.mean())


@pytest.mark.slow
def test_auroc_is_the_share_of_pairs_in_order():
    logits, labels = class_draws()
    probs = logits.softmax(-1).mean(0)
    each = []
    for c in range(3):
        pos, neg = probs[labels == c, c], probs[labels != c, c]
        each.append((pos[:, None] > neg).double().mean().item())
    assert m.auroc(probs, labels) == pytest.approx(np.mean(each), rel=1e-6)
    with pytest.raises(ValueError, match=r"auroc: expected labels of every class, got none of \[2\]"):
        m.auroc(probs, labels.clamp_max(1))


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1e3])  # a sigmoid would tie scores as large as these
def test_scores_of_what_is_elsewhere_against_pairs_and_thresholds(offset):
    inside = torch.randn(200, generator=torch.Generator().manual_seed(1)).double() + offset
    outside = torch.cat(
        [torch.randn(80, generator=torch.Generator().manual_seed(2)).double() + 1 + offset, inside[:20]]
    )
    more = (outside[:, None] > inside).double() + 0.5 * (outside[:, None] == inside).double()
    assert m.ood_auroc(inside, outside) == pytest.approx(more.mean().item(), rel=1e-5)
    for accepted in (0.95, 0.5, 1.0):
        bounds = [b for b in inside.tolist() if (inside <= b).double().mean() >= accepted]
        expected = (outside <= min(bounds)).double().mean().item()
        assert m.ood_fpr(inside, outside, accepted) == pytest.approx(expected, abs=1e-6)


def test_pit_is_the_cdf_of_the_mixture_and_uniform_for_what_is_predicted():
    locs, y = torch.linspace(-1, 1, 6)[:, None].double() + torch.arange(4), torch.tensor([0.0, 0.5, 2.0, 9.0]).double()
    prediction = vd.Predictive(dist.Normal(locs, 0.4), "y")
    expected = stats.norm(locs.numpy(), 0.4).cdf(y.numpy()).mean(0)
    np.testing.assert_allclose(m.pit(prediction, y), expected, rtol=1e-6)
    torch.testing.assert_close(prediction.cdf(prediction.quantile(0.3)), torch.full((4,), 0.3).double())


@pytest.mark.parametrize("family", ["Poisson", "StudentT"])
def test_pit_without_a_cdf_is_uniform(family):
    """400 values of the prediction itself: Kolmogorov's distance below 0.14, odds 1e-6 (samples add 0.02)."""
    rates = torch.full((3, 400), 2.0)
    draws = dist.Poisson(rates) if family == "Poisson" else dist.StudentT(5.0, rates, 1.0)
    prediction = vd.Predictive(draws, "y")
    assert prediction.quantile_method == "samples"
    found = m.pit(prediction, prediction.sample())
    assert stats.kstest(found.numpy(), "uniform").statistic < 0.14


def test_coverage_and_width_of_intervals():
    prediction = vd.Predictive(dist.Normal(torch.zeros(3, 200), torch.arange(1.0, 201.0)), "y")
    y = torch.arange(1.0, 201.0) * torch.linspace(-3, 3, 200)  # of standard deviations from -3 to 3
    ends = stats.norm.ppf(0.9)
    inside = (torch.linspace(-3, 3, 200).abs() <= ends).double().mean().item()
    assert m.interval_coverage(prediction, y, 0.8) == pytest.approx(inside)
    assert m.interval_width(prediction, 0.8) == pytest.approx(2 * ends * 100.5, rel=1e-4)


def test_risk_coverage_against_a_loop_and_ties_share_their_loss():
    generator = torch.Generator().manual_seed(0)
    losses, doubt = torch.rand(50, generator=generator).double(), torch.rand(50, generator=generator)
    curve = m.risk_coverage(losses, doubt)
    order = np.argsort(doubt.numpy())
    expected = [losses.numpy()[order[: k + 1]].mean() for k in range(50)]
    np.testing.assert_allclose(curve.risk, expected)
    assert curve.area == pytest.approx(np.mean(expected)) and curve.coverage[-1] == 1.0
    tied = m.risk_coverage(torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.zeros(4))
    assert tied.risk.tolist() == [0.5] * 4, "whatever the order of equals"


@pytest.mark.slow
def test_a_temperature_has_the_least_nll():
    logits, labels = class_draws()

    def loss(log_t: float, scores: Tensor) -> float:
        log_p = (scores / math.exp(log_t)).log_softmax(-1).logsumexp(0) - math.log(len(scores))
        return -log_p[torch.arange(300), labels].mean().item()

    for scores in (logits, logits[:1]):
        best = optimize.minimize_scalar(lambda t, s=scores: loss(t, s), bounds=(-3, 3), options={"xatol": 1e-10})
        found = m.fit_temperature(scores if len(scores) > 1 else scores[0], labels)
        assert found == pytest.approx(math.exp(best.x), rel=1e-4) and found > 1.5
    likelihood = vd.Predictive(dist.Categorical(logits=logits), "y")
    assert m.fit_temperature(likelihood, labels) == pytest.approx(m.fit_temperature(logits, labels), rel=1e-6)
    two = vd.Predictive(dist.Bernoulli(logits=logits[..., 1] - logits[..., 0]), "y")
    kept = (labels < 2).double()
    pairs = torch.stack([torch.zeros_like(logits[..., 0]), logits[..., 1] - logits[..., 0]], -1)
    assert m.fit_temperature(two, kept) == pytest.approx(m.fit_temperature(pairs, kept.long()), rel=1e-6)


@pytest.mark.parametrize("sign, instead", [(1, "0"), (-1, "infinity")])
def test_no_temperature_is_best_where_all_is_right_or_wrong(sign, instead):
    logits = sign * torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    with pytest.raises(ValueError, match=f"fit_temperature: .*best temperature of {instead}"):
        m.fit_temperature(logits, torch.tensor([0, 1]))


def test_conformal_sets_hold_the_label_as_often_as_they_claim():
    """Mean coverage over 200 splits of 99 for calibration: exactly 0.8 expected, standard error 0.003 (6 of them)."""
    logits, labels = class_draws(1, 300)
    probs, generator = logits[0].softmax(-1), torch.Generator().manual_seed(3)
    covered = []
    for _ in range(200):
        order = torch.randperm(300, generator=generator)
        calibration, rest = order[:99], order[99:]
        bound = m.conformal_threshold(probs[calibration], labels[calibration], 0.8)
        sets = m.conformal_sets(probs[rest], bound)
        covered.append(sets[torch.arange(201), labels[rest]].double().mean().item())
    assert np.mean(covered) == pytest.approx(0.8, abs=0.018)
    with pytest.raises(ValueError, match="expected at least 9 examples for probability 0.9, got 8"):
        m.conformal_threshold(probs[:8], labels[:8], 0.9)
    assert math.isfinite(m.conformal_threshold(probs[:9], labels[:9], 0.9))


PROBS, LABELS = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1])
CATEGORICAL = vd.Predictive(dist.Categorical(probs=PROBS.expand(3, 2, 2)), "y")
NORMAL = vd.Predictive(dist.Normal(torch.zeros(3, 2), 1.0), "y")
MASKED = vd.Predictive(dist.Normal(torch.zeros(3, 2), 1.0).mask(torch.tensor([True, False])), "y")
REFUSED = {
    "logits": (m.nll, (torch.tensor([[2.0, -1.0]]), LABELS[:1]), ValueError, r"sum to 1.*write logits.softmax\(-1\)"),
    "NaN": (m.brier_score, (PROBS * math.nan, LABELS), ValueError, "sum to 1"),
    "draws": (m.nll, (PROBS.expand(3, 2, 2), LABELS), ValueError, r"labels of shape \(3, 2\).*take the mean"),
    "one-hot labels": (m.brier_score, (PROBS, PROBS.round()), ValueError, r"labels of shape \(2,\), .*argmax"),
    "one-hot labels of a prediction": (m.brier_score, (CATEGORICAL, PROBS.round()), ValueError, r"of shape \(2,\)"),
    "labels from 1": (m.brier_score, (PROBS, LABELS + 1), ValueError, "labels from 0 to 1, got 1 to 2"),
    "labels between": (m.brier_score, (PROBS, LABELS / 2), ValueError, "labels from 0 to 1"),
    "no examples": (m.nll, (PROBS[:0], LABELS[:0]), ValueError, "at least one"),
    "a list": (m.nll, ([[0.5, 0.5]], LABELS), TypeError, "nll: expected prediction to be an array"),
    "numbers for classes": (m.brier_score, (NORMAL, LABELS), ValueError, "probabilities of classes, got Normal"),
    "classes for numbers": (m.pit, (CATEGORICAL, LABELS), ValueError, "an order of its values, got Categorical"),
    "an array for a prediction": (m.pit, (PROBS, LABELS), TypeError, "pit: expected a Predictive"),
    "a mask": (m.nll, (MASKED, torch.zeros(2)), ValueError, "nll: expected a likelihood without masked examples"),
    "a mask in intervals": (m.interval_width, (MASKED,), ValueError, "without masked examples"),
    "NaN of pit": (m.pit, (NORMAL, torch.tensor([0.0, math.nan])), ValueError, "'y': expected numbers, got NaN"),
    "a shape": (m.pit, (NORMAL, torch.zeros(4, 2)), ValueError, r"shape \(2,\), got \(4, 2\)"),
    "NaN in coverage": (m.interval_coverage, (NORMAL, torch.zeros(2) * math.nan), ValueError, "with 2 NaN"),
    "a shape in coverage": (m.interval_coverage, (NORMAL, torch.zeros(1)), ValueError, r"shape \(2,\)"),
    "a probability": (m.interval_coverage, (NORMAL, torch.zeros(2), 90), ValueError, "probability"),
    "losses": (m.risk_coverage, (torch.zeros(3), torch.zeros(2)), ValueError, "got 3 and 2"),
    "doubt": (m.risk_coverage, (torch.zeros(1), torch.tensor([math.nan])), ValueError, "uncertainty to be numbers"),
    "a norm": (m.calibration_error, (PROBS, LABELS, 15, "l3"), ValueError, "'l1', 'l2', 'max', got 'l3'"),
    "bins": (m.calibration_error, (PROBS, LABELS, 0), ValueError, ">= 1, got 0"),
    "logits of numbers": (m.fit_temperature, (NORMAL, LABELS), ValueError, "probabilities of classes, got Normal"),
    "logits of other examples": (m.fit_temperature, (PROBS, LABELS[:1]), ValueError, r"of shape \(2,\), .* got \(1,\)"),
    "a threshold": (m.conformal_sets, (PROBS, 2.0), ValueError, "conformal_sets: expected threshold <= 1|>= 0 <= 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_judged_is_refused(case):
    function, given, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        function(*given)


@pytest.mark.slow
def test_predictions_of_numpyro_have_the_same_numbers():
    jnp = pytest.importorskip("jax.numpy")
    import numpyro.distributions as ndist

    import pyro_vd.numpyro as mirror

    logits, labels = class_draws()
    ours = vd.Predictive(dist.Categorical(logits=logits.float()), "y")
    theirs = mirror.Predictive(ndist.Categorical(logits=jnp.asarray(logits.float().numpy())), "y")
    for score in (m.nll, m.fit_temperature):
        assert score(theirs, jnp.asarray(labels.numpy())) == pytest.approx(score(ours, labels), rel=1e-4), score
    locs, y = torch.randn(20, 30), torch.randn(30)
    theirs = mirror.Predictive(ndist.Normal(jnp.asarray(locs.numpy()), 0.5), "y")
    np.testing.assert_allclose(m.pit(theirs, y), m.pit(vd.Predictive(dist.Normal(locs, 0.5), "y"), y), atol=1e-5)
    masked = mirror.Predictive(ndist.Normal(jnp.zeros((3, 2)), 1.0).mask(jnp.array([True, False])), "y")
    with pytest.raises(ValueError, match="without masked examples"):
        m.nll(masked, np.zeros(2, np.float32))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.functional.classification", None)
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    for score in (m.accuracy, m.auroc, m.ood_auroc, m.ood_fpr):
        name = score.__name__
        with pytest.raises(ImportError, match=rf"{name}: expected torchmetrics, found none; .*pyro_vd\[metrics\]"):
            score(PROBS[0], LABELS.float()) if name.startswith("ood") else score(PROBS, LABELS)
