"""Bits of the weights from their posterior."""

from __future__ import annotations

import torch  # noqa: F401  for the example

from pyro_vd.common.bits import BitsReport, bits_row
from pyro_vd.sparsity.masks import DEFAULT_THRESHOLD, Posteriors, Sparsity, keep_masks, posteriors_of


def weight_bits(
    guide: Posteriors, log_alpha_threshold: float = DEFAULT_THRESHOLD, *, sparsity: Sparsity = None
) -> BitsReport:
    """How many bits the kept weights need: less than their posterior noise need not be stored.

    The means of a layer go to multiples of a step, a power of two whose half is at most the root of the mean posterior
    variance of the kept weights::

        bits = 1 + ceil(log2(round(max |loc| / step) + 1))

    of which one is the sign.

    Args:
        guide: a guide of :mod:`pyro_vd.guides`, or the dict that :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio up to which a weight is kept; see :func:`keep_masks`.
        sparsity: the share of the weights to prune in the place of a threshold; see :func:`keep_masks`.

    Returns:
        A :class:`BitsReport`: ``.rows`` with ``.step`` and ``.bits`` of each site, ``.bits``, ``.compression``.

    Raises:
        ValueError: as :func:`keep_masks`.

    Example:
        >>> from pyro_vd.posteriors import DropoutNormal
        >>> q = DropoutNormal(torch.tensor([3.0, -1.0, 0.001]), log_sigma2=-4.0)
        >>> print(weight_bits({"w": q}))
        site     weights       kept        step   bits
        w              3          2        0.25      5
        total          3          2                5.0

    References:
        Louizos, Ullrich, Welling 2017, arXiv:1705.08665, section 4.2, which takes the precision of a layer from its
        mean posterior variance.

    See also:
        :class:`pyro_vd.BitsReport`, :func:`pyro_vd.weight_posteriors`.
    """
    posteriors = posteriors_of(guide)
    rows = []
    for site, mask in keep_masks(posteriors, log_alpha_threshold, sparsity).items():
        q, kept = posteriors[site], int(mask.sum())
        means, variances = (value.detach().expand(q.loc.shape)[mask] for value in (q.mean, q.variance))
        largest, variance = (means.abs().max().item(), variances.mean().item()) if kept else (0.0, 0.0)
        rows.append(bits_row(site, mask.numel(), kept, largest, variance))
    return BitsReport(tuple(rows))
