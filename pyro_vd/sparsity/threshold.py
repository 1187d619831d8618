"""The threshold as a choice: error and size of the pruned net over several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from pyro_vd.common.options import check_callable
from pyro_vd.common.threshold import SHARES, ThresholdCurve, build_curve
from pyro_vd.module import BayesianModule
from pyro_vd.sparsity.masks import DEFAULT_THRESHOLD, Posteriors, keep_masks, posteriors_of
from pyro_vd.sparsity.prune import prune


def threshold_curve(
    bnn: BayesianModule,
    guide: Posteriors,
    evaluate: Callable[[nn.Module], float | Mapping[str, float]],
    thresholds: Sequence[float] | None = None,
) -> ThresholdCurve:
    """Prune at several thresholds and evaluate each net, the unpruned one among them.

    Choose on data that neither training nor the final test has seen.

    Args:
        bnn: the module of the model that the guide was trained with; see :func:`prune`.
        guide: a guide of :mod:`pyro_vd.guides`, or the dict that :func:`weight_posteriors` returns.
        evaluate: takes a pruned net, in eval mode and without gradients, to its error or loss on validation data, lower
            is better; or to a mapping of several numbers, the "error" among them.
        thresholds: of ``log_alpha``, natural log. None: 3, and those that prune 10 % to 99.8 % of the weights.

    Returns:
        A :class:`ThresholdCurve`: ``.rows``, ``.choose(tolerance)``, ``.plot()``; it prints as a table.

    Raises:
        ValueError: an evaluation that is NaN, or has no "error"; no thresholds, or one that is NaN.
        TypeError: an evaluation that is no function, or does not return a number.

    Example:
        >>> from pyro_vd.posteriors import DropoutNormal
        >>> from pyro_vd.priors import ImproperLogUniform
        >>> bnn = BayesianModule(nn.Linear(3, 1, bias=False), ImproperLogUniform())
        >>> q = DropoutNormal(torch.tensor([[2.0, 0.5, 0.1]]), log_sigma2=0.0)
        >>> curve = threshold_curve(bnn, {"net.weight": q}, lambda net: 3.6 - net(torch.ones(3)).item(), [-2, 1, 3])
        >>> print(curve)
        threshold       kept  sparsity       error
           -2.000          0   100.00%         3.6
            1.000          1    66.67%         1.6
            3.000          2    33.33%         1.1
              inf          3     0.00%           1
        >>> curve.choose(tolerance=0.2).log_alpha_threshold
        3.0

    See also:
        :class:`pyro_vd.ThresholdCurve`, :func:`pyro_vd.prune`.
    """
    check_callable("evaluate", evaluate, "a function of a net", "write lambda net: error(net)", "threshold_curve")
    posteriors = posteriors_of(guide)

    def row_of(threshold: float) -> tuple:
        masks = keep_masks(posteriors, threshold).values()
        net = prune(bnn, posteriors, threshold).eval()

        @torch.no_grad()
        def evaluated() -> float | Mapping[str, float]:
            return evaluate(net)

        return sum(mask.numel() for mask in masks), sum(int(mask.sum()) for mask in masks), evaluated

    def default() -> list[float]:
        values = (
            torch.cat([q.log_alpha.detach().expand(q.loc.shape).flatten() for q in posteriors.values()]).sort().values
        )
        ranks = [max(round((1 - share) * len(values)), 1) - 1 for share in SHARES]
        return [DEFAULT_THRESHOLD, *values[ranks].tolist()]

    keep_masks(posteriors)  # for its checks, before any pruning
    return build_curve(row_of, default, thresholds)
