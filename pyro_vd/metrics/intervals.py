"""Whether numbers fall where a prediction says: the cdf at what was observed, and intervals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vd.common.options import check_number
from pyro_vd.metrics.arguments import like, predictive, tensor


def pit(prediction: Any, values: Any) -> Tensor:
    """Probability integral transform: the predictive cdf at what was observed.

    ``F(y)``; of a discrete likelihood ``F(y - 1) + u * p(y)``, u uniform

    A calibrated prediction has values that are uniform between 0 and 1: many near 0 and 1 tell of intervals that are
    too narrow.

    Args:
        prediction: a ``Predictive`` of numbers. Without a cdf its 4,000 samples stand for it.
        values: observed, in the shape of the site.

    Returns:
        Tensor of that shape; for a likelihood of integers, or without a cdf, the u is drawn.

    Raises:
        ValueError: a likelihood of classes; another shape; NaN; masked examples.
        TypeError: not a prediction.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vd import Predictive
        >>> pit(Predictive(dist.Normal(torch.zeros(5, 3), 1.0), "y"), torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.1587, 0.5000, 0.8413])

    References:
        Dawid 1984, doi:10.2307/2981683; Czado, Gneiting, Held 2009, doi:10.1111/j.1541-0420.2009.01191.x.

    See also:
        :func:`pyro_vd.metrics.interval_coverage`.
    """
    prediction = predictive("pit", prediction)
    observed = like(prediction, tensor("pit", "values", values))
    most = tensor("pit", "cdf", prediction.cdf(observed))
    if prediction.quantile_method == "bisection" and not prediction.draws.support.is_discrete:
        return most
    samples, observed = tensor("pit", "samples", prediction._samples), tensor("pit", "values", observed)
    less = (samples < observed).to(most.dtype).mean(0)
    return less + torch.rand_like(most) * (most - less)


def interval_coverage(prediction: Any, values: Any, probability: float = 0.9) -> float:
    """Share of what was observed that lies in the central interval of the prediction.

    Args:
        prediction: a ``Predictive`` of numbers.
        values: observed, in the shape of the site.
        probability: that the interval claims to hold.

    Returns:
        Between 0 and 1; of a calibrated prediction of continuous values near ``probability``. Its standard error, of n
        independent values, is ``sqrt(probability * (1 - probability) / n)``.

    Raises:
        ValueError: as :func:`pit`; a probability that is not between 0 and 1.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vd import Predictive
        >>> prediction = Predictive(dist.Normal(torch.zeros(5, 4), 1.0), "y")  # 0.9 lie within 1.645
        >>> interval_coverage(prediction, torch.tensor([-2.0, -1.0, 1.0, 1.6]), 0.9)
        0.75

    See also:
        :func:`pyro_vd.metrics.interval_width`, :func:`pyro_vd.metrics.pit`.
    """
    low, high = _ends("interval_coverage", prediction, probability)
    observed = tensor("interval_coverage", "values", values)
    if observed.shape != low.shape or not observed.numel() or bool(observed.isnan().any()):
        raise ValueError(
            f"interval_coverage: expected numbers of shape {tuple(low.shape)}, at least one, got "
            f"{tuple(observed.shape)} with {int(observed.isnan().sum())} NaN; give the data of the inputs predicted"
        )
    return ((low <= observed) & (observed <= high)).double().mean().item()


def interval_width(prediction: Any, probability: float = 0.9) -> float:
    """Mean width of the central interval of the prediction, in the units of the site.

    Args:
        prediction: a ``Predictive`` of numbers.
        probability: that the interval claims to hold.

    Returns:
        Of two predictions that cover as they claim the one with the smaller width says more.

    Raises:
        ValueError: as :func:`interval_coverage`.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vd import Predictive
        >>> f"{interval_width(Predictive(dist.Normal(torch.zeros(5, 4), 1.0), 'y'), 0.9):.3f}"
        '3.290'

    See also:
        :func:`pyro_vd.metrics.interval_coverage`.
    """
    low, high = _ends("interval_width", prediction, probability)
    return (high - low).double().mean().item()


def _ends(owner: str, prediction: Any, probability: float) -> tuple[Tensor, Tensor]:
    probability = check_number("probability", probability, above=0.0, at_most=1.0, owner=owner)
    low, high = predictive(owner, prediction).interval(probability)
    return tensor(owner, "interval", low), tensor(owner, "interval", high)
