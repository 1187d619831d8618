"""Sparsity of a trained guide: how many weights stay, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp  # noqa: F401  for the example

from pyro_vd.common.reports import SparsityReport, SparsityRow
from pyro_vd.numpyro.sparsity.masks import (
    DEFAULT_THRESHOLD,
    Posteriors,
    Sparsity,
    find_thresholds,
    keep_mask,
    posteriors_of,
)
from pyro_vd.sparsity.report import report_threshold


def sparsity_report(
    guide: Posteriors,
    log_alpha_threshold: float = DEFAULT_THRESHOLD,
    *,
    sparsity: Sparsity = None,
    params: Mapping[str, Any] | None = None,
) -> SparsityReport:
    """How many weights stay when those with ``log_alpha > log_alpha_threshold`` are pruned.

    Args:
        guide: a guide of :mod:`pyro_vd.guides.numpyro`, or the dict that its ``posteriors(params)`` or
            :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio; 3 is a dropout rate of 0.95. The threshold is a
            choice: :func:`threshold_curve` shows the error of the pruned net over several.
        sparsity: the share of the weights to prune in the place of a threshold; see :func:`keep_masks`.
        params: the parameters of a guide, as ``svi.get_params`` returns them.

    Raises:
        ValueError: a guide without ``params``; as :func:`keep_masks`.

    Example:
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> q = DropoutNormal(jnp.array([1.0, 0.01]), log_sigma2=-3.0)
        >>> print(sparsity_report({"w": q}))
        site            shape    weights       kept  sparsity  compression
        w                   2          2          1    50.00%         2.0x
        total                          2          1    50.00%         2.0x

    References:
        Molchanov et al. 2017, arXiv:1701.05369, section 5.

    See also:
        :func:`pyro_vd.numpyro.prune`, :func:`pyro_vd.numpyro.threshold_curve`.
    """
    posteriors = posteriors_of(guide, params)
    thresholds = find_thresholds(posteriors, log_alpha_threshold, sparsity)
    kept = {site: keep_mask(q, thresholds[site]) for site, q in posteriors.items()}
    rows = tuple(SparsityRow(site, tuple(m.shape), m.size, int(m.sum())) for site, m in kept.items())
    floats = {site: float(threshold) for site, threshold in thresholds.items()}
    return SparsityReport(rows, report_threshold(floats, sparsity, log_alpha_threshold))
