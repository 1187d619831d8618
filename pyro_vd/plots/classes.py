"""Pictures of predicted classes: calibration, entropies, and what is gained by leaving doubtful examples out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vd.common.options import check_count, shown
from pyro_vd.metrics.arguments import classes, is_predictive, tensor
from pyro_vd.metrics.scores import calibration_bins, calibration_error
from pyro_vd.metrics.selection import RiskCoverage
from pyro_vd.plots.style import COLOURS, FILL, HATCHES, LINES, axes, finish


def reliability_diagram(prediction: Any, labels: Any, bins: int = 15, ax: Any = None) -> Any:
    """How often the predicted class is right, against its probability, with the number of examples in each bin.

    Bars are the share of right predictions; the diagonal is what their probability says. A number stands over each bar.
    The calibration error in the title is the mean distance from the diagonal, weighted by these numbers.

    Args:
        prediction: a ``Predictive`` of classes of either backend, or probabilities, shape (examples, classes).
        labels: numbers of classes, shape (examples,).
        bins: of equal width.
        ax: axes of matplotlib to draw in; without, those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed (the extra "plots").
        ValueError: values that are not probabilities, or labels of other classes.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> reliability_diagram(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1])).get_xlabel()
        'probability of the predicted class'

    References:
        Guo et al. 2017, arXiv:1706.04599, figure 1.

    See also:
        :func:`pyro_vd.metrics.calibration_error`.
    """
    bins = check_count("bins", bins, 1, "reliability_diagram")
    probs, targets = classes("reliability_diagram", prediction, labels)
    ax = axes(ax, "reliability_diagram")
    counts, right, mean = calibration_bins(probs, targets, bins)
    error = calibration_error(probs, targets, bins)
    used = (counts > 0).nonzero()[:, 0].tolist()
    left = [i / bins for i in used]
    ax.bar(
        left,
        right[used].tolist(),
        1 / bins,
        align="edge",
        color=FILL,
        edgecolor="black",
        label="share right; number of examples above",
    )
    ax.plot([0, 1], [0, 1], color="gray", linestyle="--", label="calibrated: share = probability")
    ax.plot(
        mean[used].tolist(),
        right[used].tolist(),
        "o",
        color="white",
        markeredgecolor="black",
        label="mean probability of the bin",
    )
    for i in used:
        ax.text((i + 0.5) / bins, right[i].item() + 0.025, f"{int(counts[i])}", ha="center", va="bottom", fontsize=7)
    return finish(
        ax, f"{len(targets)} examples, calibration error {100 * error:.1f} %", "probability of the predicted class",
        "share of right predictions", xlim=(0, 1), ylim=(0, 1.08),
    )  # fmt: skip


def entropy_histogram(entropies: Mapping[str, Any], bins: int = 40, ax: Any = None) -> Any:
    """Histogram of the entropy of predictions, for data like that of training and for other data.

    Args:
        entropies: ``{label: Predictive or its entropies}``, the data like that of training first.
        bins: of equal width, from 0, or the least entropy of a density, to the largest.
        ax: axes of matplotlib to draw in; without, those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed (the extra "plots").
        TypeError: not a dict, or a value in it that is neither a prediction nor an array.
        ValueError: an empty dict, more than five entries, no examples, or NaN.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> entropy_histogram({"clothes": torch.rand(50), "noise": 2 * torch.rand(50)}).get_ylabel()
        'share of the examples'

    See also:
        :func:`pyro_vd.metrics.ood_auroc`.
    """
    bins = check_count("bins", bins, 1, "entropy_histogram")
    series = {
        name: _numbers("entropy_histogram", name, one.entropy() if is_predictive(one) else one)
        for name, one in _named("entropy_histogram", entropies).items()
    }
    ax = axes(ax, "entropy_histogram")
    low = min(0.0, *(float(values.min()) for values in series.values()))
    high = max(low + 1e-3, *(float(values.max()) for values in series.values()))
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64).tolist()
    for i, (name, values) in enumerate(series.items()):
        weights = torch.full_like(values, 1 / len(values))
        ax.hist(
            values.numpy(), edges, weights=weights.numpy(), histtype="stepfilled", facecolor=COLOURS[i], alpha=0.35,
            hatch=HATCHES[i], edgecolor=COLOURS[i],
        )  # fmt: skip
        ax.hist(
            values.numpy(), edges, weights=weights.numpy(), histtype="step", color=COLOURS[i], linestyle=LINES[i],
            linewidth=1.8, label=f"{name} ({len(values)})",
        )  # fmt: skip
    return finish(
        ax, "Entropy of the predictions", "entropy of the predictive distribution (nats)", "share of the examples"
    )


def risk_coverage_curve(curves: Mapping[str, RiskCoverage], ax: Any = None, loss: str = "error, share") -> Any:
    """Mean loss of the most certain examples, against the share of the examples that are kept.

    Args:
        curves: ``{label: risk_coverage(losses, uncertainty)}``.
        ax: axes of matplotlib to draw in; without, those of a new figure.
        loss: what the loss is, with its unit, for the label of the axis.

    Returns:
        The axes; the legend has the area under each curve.

    Raises:
        ImportError: matplotlib is not installed (the extra "plots").
        TypeError: not a dict, or a value in it that ``risk_coverage`` did not make.
        ValueError: an empty dict, or more than five entries.

    Example:
        >>> import matplotlib
        >>> from pyro_vd.metrics import risk_coverage
        >>> matplotlib.use("Agg")
        >>> curve = risk_coverage(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.7]))
        >>> risk_coverage_curve({"entropy": curve}).get_legend().get_texts()[0].get_text()
        'entropy (area 0.25)'

    See also:
        :func:`pyro_vd.metrics.risk_coverage`.
    """
    series = _named("risk_coverage_curve", curves)
    for name, curve in series.items():
        if not isinstance(curve, RiskCoverage):
            raise TypeError(
                f"risk_coverage_curve: expected {name!r} to be what risk_coverage returns, got {shown(curve)}; write "
                "{name: pyro_vd.metrics.risk_coverage(losses, uncertainty)}"
            )
    ax = axes(ax, "risk_coverage_curve")
    for i, (name, curve) in enumerate(series.items()):
        label = f"{name} (area {curve.area:.3g})"
        ax.plot(
            100 * curve.coverage.numpy(),
            curve.risk.numpy(),
            linestyle=LINES[i],
            color=COLOURS[i],
            linewidth=1.8,
            label=label,
        )
    return finish(
        ax, "Risk and coverage", "examples kept, the most certain first (%)", f"mean loss of those kept ({loss})",
        xlim=(0, 100), ylim=(0, None),
    )  # fmt: skip


def _named(owner: str, series: Any) -> dict[str, Any]:
    if not isinstance(series, Mapping):
        raise TypeError(f"{owner}: expected a dict {{label: values}}, got {shown(series)}; write {{'test data': ...}}")
    if not 1 <= len(series) <= len(COLOURS):
        raise ValueError(f"{owner}: expected 1 to {len(COLOURS)} entries, got {len(series)}; draw more in other axes")
    return {str(name): values for name, values in series.items()}


def _numbers(owner: str, name: str, values: Any) -> Tensor:
    found = tensor(owner, repr(name), values).double().reshape(-1)
    if not found.numel() or not bool(found.isfinite().all()):
        raise ValueError(
            f"{owner}: expected {name!r} to be finite numbers, at least one, got {found.numel()} with "
            f"{int((~found.isfinite()).sum())} that are not; look at the predictions they are of"
        )
    return found
