"""A picture of a predicted curve and its uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_vd.common.options import check_number
from pyro_vd.metrics.arguments import predictive, tensor
from pyro_vd.plots.style import COLOURS, FILL, axes, finish


def regression_band(
    x: Any, prediction: Any, data: tuple[Any, Any] | None = None, deviations: float = 2.0, ax: Any = None
) -> Any:
    """A predicted curve with two bands: the noise of the data alone, and noise and epistemic uncertainty together.

    The inner band is ``mean +- deviations * sqrt(aleatoric variance)``; the outer one has the epistemic variance too.

    Args:
        x: one input an example, shape (examples,); in any order.
        prediction: a ``Predictive`` of one number an example, of either backend, for these inputs.
        data: ``(x, y)`` of observations to draw as points.
        deviations: half the width of a band, in standard deviations.
        ax: axes of matplotlib to draw in; without, those of a new figure. They are labelled "x" and "y": set
            labels of your own, with units.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed (the extra "plots").
        ValueError: a prediction without mean and variance; other numbers of inputs; ``deviations`` that is not
            positive.
        TypeError: not a prediction, or inputs that are not arrays.

    Example:
        >>> import matplotlib, torch
        >>> import pyro.distributions as dist
        >>> from pyro_vd import Predictive
        >>> matplotlib.use("Agg")
        >>> lines = torch.randn(20, 1) * torch.linspace(0.0, 1.0, 7)
        >>> regression_band(torch.linspace(0.0, 1.0, 7), Predictive(dist.Normal(lines, 0.1), "y")).get_ylabel()
        'y'

    References:
        Depeweg et al. 2018, arXiv:1710.07283, equation 6, for the two parts.

    See also:
        :func:`pyro_vd.metrics.interval_coverage`.
    """
    deviations = check_number("deviations", deviations, above=0.0, owner="regression_band")
    prediction = predictive("regression_band", prediction)
    mean, aleatoric, epistemic = (
        _flat("prediction", one)
        for one in (prediction.mean, prediction.aleatoric_variance, prediction.epistemic_variance)
    )
    inputs = _flat("x", x)
    points = None if data is None else tuple(_flat("data", one) for one in data)
    if len(inputs) != len(mean) or (points is not None and (len(points) != 2 or len(points[0]) != len(points[1]))):
        pairs = "" if points is None else f", data of {[len(one) for one in points]}"
        raise ValueError(
            f"regression_band: expected one input for each of the {len(mean)} predictions, and pairs of data, got "
            f"{len(inputs)} inputs{pairs}; flatten them to one number an example"
        )
    ax = axes(ax, "regression_band")
    order = inputs.argsort()
    inputs, mean = inputs[order], mean[order]
    noise = deviations * np.sqrt(aleatoric[order])
    whole = deviations * np.sqrt((aleatoric + epistemic)[order])
    total, inner = f"+- {deviations:g} standard deviations, total", f"+- {deviations:g} of the noise alone"
    ax.fill_between(inputs, mean - whole, mean + whole, color=FILL, alpha=0.45, linewidth=0, label=total)
    ax.fill_between(inputs, mean - noise, mean + noise, color=COLOURS[0], alpha=0.45, linewidth=0, label=inner)
    for side in (-1, 1):
        ax.plot(inputs, mean + side * whole, color=COLOURS[0], linewidth=0.8, linestyle="--")
    ax.plot(inputs, mean, color=COLOURS[0], linewidth=2.0, label="mean")
    if points is not None:
        ax.plot(*points, ".", color="black", markersize=4, label="data")
    return finish(ax, "Prediction with its noise and its total uncertainty", "x", "y")


def _flat(name: str, values: Any) -> np.ndarray:
    return tensor("regression_band", name, values).double().reshape(-1).numpy()
