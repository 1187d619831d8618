"""Sparsity of a trained guide: how many weights stay, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from pyro_vd.common.reports import SparsityReport, SparsityRow
from pyro_vd.sparsity.masks import DEFAULT_THRESHOLD, Posteriors, Sparsity, find_thresholds, keep_mask, posteriors_of


def sparsity_report(
    guide: Posteriors, log_alpha_threshold: float = DEFAULT_THRESHOLD, *, sparsity: Sparsity = None
) -> SparsityReport:
    """How many weights stay when those with ``log_alpha > log_alpha_threshold`` are pruned.

    Args:
        guide: a guide of :mod:`pyro_vd.guides`, or the dict that :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio; 3 is a dropout rate of 0.95. The threshold is a
            choice: :func:`threshold_curve` shows the error of the pruned net over several.
        sparsity: the share of the weights to prune in the place of a threshold; see :func:`keep_masks`.

    Raises:
        ValueError: as :func:`keep_masks`.

    Example:
        >>> import torch
        >>> from pyro_vd.posteriors import DropoutNormal
        >>> q = DropoutNormal(torch.tensor([1.0, 0.01]), log_sigma2=-3.0)
        >>> print(sparsity_report({"w": q}))
        site            shape    weights       kept  sparsity  compression
        w                   2          2          1    50.00%         2.0x
        total                          2          1    50.00%         2.0x

    References:
        Molchanov et al. 2017, arXiv:1701.05369, section 5.

    See also:
        :func:`pyro_vd.prune`, :func:`pyro_vd.threshold_curve`.
    """
    posteriors = posteriors_of(guide)
    thresholds = find_thresholds(posteriors, log_alpha_threshold, sparsity)
    kept = {site: keep_mask(q, thresholds[site]) for site, q in posteriors.items()}
    rows = tuple(SparsityRow(site, tuple(m.shape), m.numel(), int(m.sum())) for site, m in kept.items())
    return SparsityReport(rows, report_threshold(thresholds, sparsity, log_alpha_threshold))


def report_threshold(thresholds: dict[str, float], sparsity: Sparsity, given: float) -> float | Mapping[str, float]:
    """One number where all sites have one threshold, else the thresholds by site."""
    return thresholds if isinstance(sparsity, Mapping) else next(iter(thresholds.values()), given)
