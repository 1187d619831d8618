"""Bits of the weights from their posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from pyro_vd.common.bits import BitsReport, bits_row
from pyro_vd.numpyro.sparsity.masks import DEFAULT_THRESHOLD, Posteriors, Sparsity, keep_masks, posteriors_of


def weight_bits(
    guide: Posteriors,
    log_alpha_threshold: float = DEFAULT_THRESHOLD,
    *,
    sparsity: Sparsity = None,
    params: Mapping[str, Any] | None = None,
) -> BitsReport:
    """How many bits the kept weights need: less than their posterior noise need not be stored.

    The means of a layer go to multiples of a step, a power of two whose half is at most the root of the mean posterior
    variance of the kept weights::

        bits = 1 + ceil(log2(round(max |loc| / step) + 1))

    of which one is the sign.

    Args:
        guide: a guide of :mod:`pyro_vd.guides.numpyro`, or the dict that its ``posteriors(params)`` or
            :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio up to which a weight is kept; see :func:`keep_masks`.
        sparsity: the share of the weights to prune in the place of a threshold; see :func:`keep_masks`.
        params: the parameters of a guide, as ``svi.get_params`` returns them.

    Returns:
        A :class:`BitsReport`: ``.rows`` with ``.step`` and ``.bits`` of each site, ``.bits``, ``.compression``.

    Raises:
        ValueError: as :func:`keep_masks`.

    Example:
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> q = DropoutNormal(jnp.array([3.0, -1.0, 0.001]), log_sigma2=-4.0)
        >>> weight_bits({"w": q}).bits
        5.0

    References:
        Louizos, Ullrich, Welling 2017, arXiv:1705.08665, section 4.2, which takes the precision of a layer from its
        mean posterior variance.

    See also:
        :class:`pyro_vd.numpyro.BitsReport`, :func:`pyro_vd.numpyro.weight_posteriors`.
    """
    posteriors = posteriors_of(guide, params)
    rows = []
    for site, mask in keep_masks(posteriors, log_alpha_threshold, sparsity).items():
        q, kept = posteriors[site], int(mask.sum())
        means, variances = (jnp.broadcast_to(value, q.loc.shape)[mask] for value in (q.mean, q.variance))
        largest, variance = (float(jnp.abs(means).max()), float(variances.mean())) if kept else (0.0, 0.0)
        rows.append(bits_row(site, mask.size, kept, largest, variance))
    return BitsReport(tuple(rows))
