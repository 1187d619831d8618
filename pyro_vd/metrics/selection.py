"""What uncertainty is good for: to leave the doubtful examples out, and to tell what is unlike the training data."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vd.common.extras import imported
from pyro_vd.common.options import check_number
from pyro_vd.metrics.arguments import tensor


class RiskCoverage(NamedTuple):
    """Mean loss of the examples that are kept, the most certain first.

    Args:
        coverage: share of the examples kept, shape (examples,), from 1/examples to 1.
        risk: mean loss of those.
        area: mean of the risk over all coverages.

    Example:
        See :func:`risk_coverage`.

    See also:
        :func:`pyro_vd.metrics.risk_coverage`.
    """

    coverage: Tensor
    risk: Tensor
    area: float


def risk_coverage(losses: Any, uncertainty: Any) -> RiskCoverage:
    """Mean loss where only the most certain examples are kept, against the share of those kept.

    ``risk(k / n) = mean loss of the k least uncertain of n examples``

    Args:
        losses: of every example: whether it is wrong, a squared error, or anything that is averaged.
        uncertainty: of every example, such as ``prediction.entropy()``; only its order counts. Examples that are
            equally uncertain share the mean of their losses.

    Returns:
        The curve and its area; the last risk is that of all examples.

    Raises:
        ValueError: not as many losses as uncertainties, none, or NaN.

    Example:
        >>> curve = risk_coverage(torch.tensor([0, 0, 1, 1]), torch.tensor([0.1, 0.2, 0.3, 0.3]))
        >>> curve.risk, f"{curve.area:.4f}"
        (tensor([0.0000, 0.0000, 0.3333, 0.5000], dtype=torch.float64), '0.2083')

    References:
        Geifman, El-Yaniv 2017, arXiv:1705.08500; the area (AURC): Geifman et al. 2019, arXiv:1805.08206.

    See also:
        :class:`pyro_vd.metrics.RiskCoverage`, :func:`pyro_vd.plots.risk_coverage_curve`.
    """
    loss, doubt = (_scores("risk_coverage", n, v) for n, v in (("losses", losses), ("uncertainty", uncertainty)))
    if loss.shape != doubt.shape:
        raise ValueError(
            f"risk_coverage: expected as many losses as uncertainties, got {len(loss)} and {len(doubt)}; give one of "
            "each for every example"
        )
    _, group = doubt.unique(return_inverse=True)
    shared = torch.zeros(int(group.max()) + 1, dtype=loss.dtype).index_add(0, group, loss) / group.bincount()
    kept = torch.arange(1, len(loss) + 1, dtype=loss.dtype)
    risk = shared[group.sort().values].cumsum(0) / kept
    return RiskCoverage(kept / len(loss), risk, risk.mean().item())


def ood_auroc(inside: Any, outside: Any) -> float:
    """Probability that an example from elsewhere is the more uncertain one, by torchmetrics; ties count half.

    Args:
        inside: uncertainty of examples like the training data, such as ``prediction.entropy()``.
        outside: uncertainty of others.

    Returns:
        Area under the receiver operating characteristic, between 0 and 1; 0.5 is chance.

    Raises:
        ImportError: torchmetrics is not installed (the extra "metrics").
        ValueError: no examples, or NaN.

    Example:
        ::

            ood_auroc(torch.tensor([0.1, 0.2]), torch.tensor([0.15, 0.9]))  # 0.75

    References:
        Hendrycks, Gimpel 2017, arXiv:1610.02136.

    See also:
        :func:`pyro_vd.metrics.ood_fpr`, :func:`pyro_vd.plots.entropy_histogram`.
    """
    ranks, is_outside = _ranked("ood_auroc", inside, outside)
    found = imported("torchmetrics.functional.classification", "metrics", "ood_auroc")
    return found.binary_auroc(ranks, is_outside).item()


def ood_fpr(inside: Any, outside: Any, accepted: float = 0.95) -> float:
    """Share of the examples from elsewhere that pass where 95 % of the usual ones do (FPR95), by torchmetrics.

    Args:
        inside, outside: as for :func:`ood_auroc`.
        accepted: least share of ``inside`` that the bound on uncertainty lets pass.

    Returns:
        Between 0 and 1; less is better.

    Raises:
        ImportError: torchmetrics is not installed (the extra "metrics").
        ValueError: no examples, or NaN; ``accepted`` that is not between 0 and 1.

    Example:
        ::

            ood_fpr(torch.tensor([0.1, 0.2]), torch.tensor([0.15, 0.9]))  # 0.5

    References:
        Liang, Li, Srikant 2018, arXiv:1706.02690, section 4.3.

    See also:
        :func:`pyro_vd.metrics.ood_auroc`.
    """
    accepted = check_number("accepted", accepted, above=0.0, at_most=1.0, owner="ood_fpr")
    ranks, is_outside = _ranked("ood_fpr", inside, outside)
    found = imported("torchmetrics.functional.classification", "metrics", "ood_fpr")
    return 1.0 - found.binary_specificity_at_sensitivity(1.0 - ranks, 1 - is_outside, accepted)[0].item()


def _scores(owner: str, name: str, values: Any) -> Tensor:
    found = tensor(owner, name, values).double().reshape(-1)
    if not found.numel() or bool(found.isnan().any()):
        raise ValueError(
            f"{owner}: expected {name} to be numbers, at least one, got {found.numel()} with "
            f"{int(found.isnan().sum())} NaN; look at the predictions they are of"
        )
    return found


def _ranked(owner: str, inside: Any, outside: Any) -> tuple[Tensor, Tensor]:
    """Dense ranks of all scores between 0 and 1 (torchmetrics puts others through a sigmoid, which ties the large)."""
    first, second = _scores(owner, "inside", inside), _scores(owner, "outside", outside)
    values, ranks = torch.cat([first, second]).unique(return_inverse=True)
    is_outside = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).long()
    return ranks.double() / max(1, len(values) - 1), is_outside
