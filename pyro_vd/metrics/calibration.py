"""Calibrating a prediction with data held out of training: one temperature, or sets of classes with a guarantee."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vd.common.options import check_number, shown
from pyro_vd.metrics.arguments import classes, is_predictive, probabilities, tensor


def fit_temperature(logits: Any, labels: Any) -> float:
    """The temperature by which logits are divided so that held-out labels become most probable.

    ``argmin over T of -mean over examples of log(mean over draws of softmax(logits / T)[label])``, by L-BFGS

    Args:
        logits: of validation data, shape (examples, classes) or (draws, examples, classes); or a ``Predictive`` whose
            likelihood is a ``Categorical`` or a ``Bernoulli``.
        labels: shape (examples,).

    Returns:
        T > 0; above 1 the prediction was too sure of itself. Use it so:
        ``Predictive(dist.Categorical(logits=prediction.draws.logits / T), "y")``.

    Raises:
        ValueError: shapes or labels that do not fit; labels that no temperature fits best, where all are right or all
            wrong.

    Example:
        >>> logits = torch.tensor([[8.0, 0.0], [8.0, 0.0], [8.0, 0.0], [0.0, 8.0]])  # sure, and right in 3 of 4
        >>> T = fit_temperature(logits, torch.tensor([0, 0, 1, 1]))
        >>> f"{T:.3f}, {torch.softmax(logits[0] / T, 0)[0]:.3f}"
        '7.282, 0.750'

    References:
        Guo et al. 2017, arXiv:1706.04599, section 4.2.

    See also:
        :func:`pyro_vd.metrics.calibration_error`.
    """
    scores, targets = _logits(logits, labels)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss(log_t: Tensor) -> Tensor:
        log_probs = (scores * (-log_t).exp()).log_softmax(-1).logsumexp(0) - math.log(len(scores))
        return -log_probs.gather(-1, targets[:, None]).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(log_t)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    found = log_t.detach()
    best = loss(found)
    for limit, end in (("0", found - math.log(1e3)), ("infinity", found + math.log(1e3))):
        if not bool(loss(end) > best):
            raise ValueError(
                "fit_temperature: expected labels of which some are predicted and some are not, got a best temperature "
                f"of {limit} for {len(targets)} labels; give more validation data"
            )
    return found.exp().item()


def conformal_threshold(prediction: Any, labels: Any, probability: float = 0.9) -> float:
    """The bound on ``1 - p(class)`` that makes sets of classes hold the label with a given probability.

    ``the ceil((n + 1) * probability)-th smallest of 1 - p(label)``

    Args:
        prediction: a ``Predictive`` of classes, or probabilities, shape (examples, classes), of calibration data, which
            training has not seen.
        labels: of these, shape (examples,).
        probability: that the set of a new example holds its label, over calibration data and examples that are drawn
            alike; it says nothing of a single class, nor of other data. It holds where both are predicted by the same
            draws of the weights: in one call of :func:`pyro_vd.predictive_distribution`, which is then split.

    Returns:
        The bound for :func:`conformal_sets`.

    Raises:
        ValueError: too few examples for the probability; values that are not probabilities, or labels of other classes.

    Example:
        >>> probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.75, 0.25], [0.25, 0.75]])
        >>> bound = conformal_threshold(probs, torch.tensor([0, 0, 0, 1]), 0.6)
        >>> bound, conformal_sets(torch.tensor([[0.8, 0.2], [0.7, 0.3]]), bound).tolist()
        (0.25, [[True, False], [False, False]])

    References:
        Sadinle, Lei, Wasserman 2019, arXiv:1609.00451; Angelopoulos, Bates 2023, arXiv:2107.07511, section 1.

    See also:
        :func:`pyro_vd.metrics.conformal_sets`.
    """
    probability = check_number("probability", probability, above=0.0, at_most=1.0, owner="conformal_threshold")
    probs, targets = classes("conformal_threshold", prediction, labels)
    scores = (1 - probs.gather(-1, targets[:, None])[:, 0]).sort().values
    index = max(1, math.ceil((len(scores) + 1) * probability - 1e-9))
    if index > len(scores):
        needed = "infinitely many" if probability == 1 else math.ceil(probability / (1 - probability) - 1e-9)
        raise ValueError(
            f"conformal_threshold: expected at least {needed} examples for probability {probability:g}, got "
            f"{len(scores)}; give more, or ask for less"
        )
    return scores[index - 1].item()


def conformal_sets(prediction: Any, threshold: float) -> Tensor:
    """The classes that cannot be left out: ``1 - p(class) <= threshold``.

    Args:
        prediction: a ``Predictive`` of classes, or probabilities, shape (examples, classes), of new examples, by the
            draws of the weights that the threshold is of.
        threshold: of :func:`conformal_threshold`.

    Returns:
        Truth values, shape (examples, classes). Doubtful examples have large sets; one may be empty.

    Raises:
        ValueError: values that are not probabilities; a threshold that is not between 0 and 1.

    Example:
        See :func:`conformal_threshold`.

    See also:
        :func:`pyro_vd.metrics.conformal_threshold`.
    """
    threshold = check_number("threshold", threshold, at_least=0.0, at_most=1.0, owner="conformal_sets")
    return 1 - probabilities("conformal_sets", prediction) <= threshold


def _logits(logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Shape (draws, examples, classes), in float64, and labels."""
    if is_predictive(logits):
        probs, targets = classes("fit_temperature", logits, labels)  # refuses a likelihood without classes
        scores = tensor("fit_temperature", "logits", logits._elements.logits).double()
        if "Bernoulli" in type(logits._elements).__name__:
            scores = torch.stack([torch.zeros_like(scores), scores], -1)
        scores = scores.reshape(-1, *probs.shape)
    else:
        scores, targets = tensor("fit_temperature", "logits", logits).double(), None
        scores = scores[None] if scores.dim() == 2 else scores
    if scores.dim() != 3 or not scores.numel() or not bool(scores.isfinite().all()):
        raise ValueError(
            "fit_temperature: expected finite logits of shape (examples, classes) or (draws, examples, classes), at "
            f"least one, got {shown(scores)}; look at them, and flatten the axes of examples into one"
        )
    if targets is None:
        _, targets = classes("fit_temperature", scores[0].softmax(-1), labels)
    return scores, targets
