"""Scores of predicted classes and densities: those of torchmetrics, and three of our own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vd.common.extras import imported
from pyro_vd.common.options import check_choice, check_count
from pyro_vd.metrics.arguments import classes, is_predictive, like, predictive, tensor


def nll(prediction: Any, labels: Any) -> float:
    """Negative log predictive density of the labels, nats, mean over the examples.

    ``-mean over examples of log p(label)``, where p is the mean over draws

    Args:
        prediction: a ``Predictive`` of any likelihood, or probabilities, shape (examples, classes).
        labels: observed values, in the shape of the site.

    Returns:
        Nats per example; an event (``to_event``) is summed.

    Raises:
        ValueError: shapes that do not agree; values outside the support; masked examples.
        TypeError: neither a prediction nor an array.

    Example:
        >>> f"{nll(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 1])):.4f}"
        '0.4904'

    See also:
        :func:`pyro_vd.metrics.brier_score`, :func:`pyro_vd.metrics.accuracy`.
    """
    if is_predictive(prediction):
        prediction, values = predictive("nll", prediction), tensor("nll", "labels", labels)
        shape = (*prediction.batch_shape, *prediction.event_shape)
        if values.shape != shape:
            raise ValueError(
                f"nll: expected labels of shape {shape}, that of site {prediction.site!r}, got {tuple(values.shape)}; "
                "of several sets of labels write -prediction.log_prob(labels), which has a number for each"
            )
        log_probs = prediction.log_prob(like(prediction, values))
        return -tensor("nll", "labels", log_probs).double().mean().item()
    probs, targets = classes("nll", prediction, labels)
    return -probs.gather(-1, targets[:, None]).log().mean().item()


def brier_score(prediction: Any, labels: Any) -> float:
    """Brier score: squared distance between the probabilities and the label, mean over the examples.

    ``mean over examples of sum over classes of (p(class) - [class is the label])**2``

    Args:
        prediction: a ``Predictive`` of classes, or probabilities, shape (examples, classes).
        labels: numbers of classes, shape (examples,).

    Returns:
        Between 0 and 2; of two classes twice the score that counts the second alone.

    Raises:
        ValueError: values that are not probabilities, or labels of other classes; a likelihood without classes.

    Example:
        >>> f"{brier_score(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 1])):.4f}"
        '0.3125'

    References:
        Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.

    See also:
        :func:`pyro_vd.metrics.nll`, :func:`pyro_vd.metrics.calibration_error`.
    """
    probs, targets = classes("brier_score", prediction, labels)
    return (probs - torch.nn.functional.one_hot(targets, probs.shape[-1])).square().sum(-1).mean().item()


def accuracy(prediction: Any, labels: Any) -> float:
    """Share of the examples whose most probable class is the label, by torchmetrics.

    Args:
        prediction, labels: as for :func:`brier_score`.

    Returns:
        Between 0 and 1.

    Raises:
        ImportError: torchmetrics is not installed (the extra "metrics").
        ValueError: as :func:`brier_score`.

    Example:
        ::

            accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))  # 0.5

    See also:
        :func:`pyro_vd.metrics.nll`, :func:`pyro_vd.metrics.calibration_error`.
    """
    probs, targets = classes("accuracy", prediction, labels)
    found = _torchmetrics("accuracy").multiclass_accuracy(probs, targets, probs.shape[-1], average="micro")
    return found.item()


def auroc(prediction: Any, labels: Any) -> float:
    """Area under the receiver operating characteristic, by torchmetrics; the mean of one class against the rest.

    Args:
        prediction, labels: as for :func:`brier_score`; every class must be among the labels.

    Returns:
        Between 0 and 1; 0.5 is chance.

    Raises:
        ImportError: torchmetrics is not installed (the extra "metrics").
        ValueError: as :func:`brier_score`; a class that no label has.

    Example:
        ::

            auroc(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))  # 1.0

    See also:
        :func:`pyro_vd.metrics.ood_auroc`, :func:`pyro_vd.metrics.risk_coverage`.
    """
    probs, targets = classes("auroc", prediction, labels)
    missing = sorted(set(range(probs.shape[-1])) - set(targets.tolist()))
    if missing:
        raise ValueError(f"auroc: expected labels of every class, got none of {missing}; leave these classes out")
    return _torchmetrics("auroc").multiclass_auroc(probs, targets, probs.shape[-1], average="macro").item()


def calibration_error(prediction: Any, labels: Any, bins: int = 15, norm: Literal["l1", "l2", "max"] = "l1") -> float:
    """Distance between the probability of the predicted class and how often it is right (ECE).

    ``sum over bins of (share of the examples) * abs(accuracy - mean probability)`` for "l1"

    Bin k of K holds ``k / K <= p < (k + 1) / K``, and the last one ``p = 1`` as well.

    Args:
        prediction, labels: as for :func:`brier_score`.
        bins: of equal width, of the probability of the predicted class.
        norm: "l1", the expected calibration error; "l2", its root mean square; "max", the largest.

    Returns:
        Between 0 and 1. It depends on the bins, and few examples make it larger.

    Raises:
        ValueError: as :func:`brier_score`; an unknown norm; fewer than one bin.

    Example:
        >>> f"{calibration_error(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 0])):.4f}"
        '0.2500'

    References:
        Guo et al. 2017, arXiv:1706.04599, equations 2, 3 and 5.

    See also:
        :func:`pyro_vd.plots.reliability_diagram`, :func:`pyro_vd.metrics.fit_temperature`.
    """
    check_choice("norm", norm, ("l1", "l2", "max"), "calibration_error")
    bins = check_count("bins", bins, 1, "calibration_error")
    probs, targets = classes("calibration_error", prediction, labels)
    counts, right, mean = calibration_bins(probs, targets, bins)
    gaps, shares = (right - mean).abs()[counts > 0], (counts / counts.sum())[counts > 0]
    if norm == "max":
        return gaps.max().item()
    return (gaps * shares).sum().item() if norm == "l1" else (gaps.square() * shares).sum().sqrt().item()


def calibration_bins(probs: Tensor, targets: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """The examples by the probability of their predicted class, in bins of equal width; 1 is in the last.

    Args:
        probs, targets: what ``classes`` returns.

    Returns:
        Number of examples, share of right predictions, and mean probability of each bin, NaN of one without examples.
    """
    sure, predicted = probs.max(-1)
    edges = torch.linspace(0, 1, bins + 1, dtype=probs.dtype)[1:-1]
    index = torch.bucketize(sure, edges, right=True)
    counts = index.bincount(minlength=bins)
    right = index.bincount((predicted == targets).to(probs.dtype), bins)
    return counts, right / counts, index.bincount(sure, bins) / counts


def _torchmetrics(owner: str) -> Any:
    return imported("torchmetrics.functional.classification", "metrics", owner)
