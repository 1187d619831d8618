"""Sparsity of a trained guide: which weights stay, and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.infer.autoguide import AutoGuideList
from torch import Tensor

from pyro_vd.common.reports import SparsityReport, SparsityRow
from pyro_vd.handlers import base_distribution
from pyro_vd.posteriors import WeightPosterior

Posteriors = Mapping[str, WeightPosterior] | Callable


def weight_posteriors(guide: Callable, *args: Any, **kwargs: Any) -> dict[str, WeightPosterior]:
    """The distribution of every random weight that a guide samples, from one run of it.

    For guides written by hand; those of :mod:`pyro_vd.guides` have ``guide.posteriors()``.

    Args:
        guide: any Pyro guide.
        *args, **kwargs: its arguments.

    Returns:
        ``{site: posterior}`` in the order of the guide, without ``to_event``.
    """
    trace = poutine.block(poutine.trace(guide).get_trace)(*args, **kwargs)
    found = {name: base_distribution(site["fn"]) for name, site in trace.iter_stochastic_nodes()}
    return {name: fn for name, fn in found.items() if isinstance(fn, WeightPosterior)}


def sparsity_report(guide: Posteriors, log_alpha_threshold: float = 3.0) -> SparsityReport:
    """How many weights stay when those with ``log_alpha > log_alpha_threshold`` are pruned.

    Args:
        guide: a guide of :mod:`pyro_vd.guides`, or the dict that :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio; 3 is a dropout rate of 0.95. The threshold is a
            choice: look at the error of the pruned net over several.

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
    """
    kept = {site: keep_mask(q, log_alpha_threshold) for site, q in posteriors_of(guide).items()}
    rows = tuple(SparsityRow(site, tuple(m.shape), m.numel(), int(m.sum())) for site, m in kept.items())
    return SparsityReport(rows, log_alpha_threshold)


def keep_mask(posterior: WeightPosterior, log_alpha_threshold: float = 3.0) -> Tensor:
    """True where a weight stays: ``log_alpha <= log_alpha_threshold``, in the shape of the weight."""
    return (posterior.log_alpha <= log_alpha_threshold).expand(posterior.loc.shape)


def posteriors_of(guide: Posteriors) -> Mapping[str, WeightPosterior]:
    """The distribution of every weight: of a guide, of the parts of a mixed one, or as given."""
    if isinstance(guide, Mapping):
        return guide
    if isinstance(guide, AutoGuideList):
        return {site: q for part in guide for site, q in posteriors_of(part).items()}
    try:
        with poutine.block():
            return guide.posteriors()  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(
            f"expected a guide of pyro_vd.guides or a dict of posteriors, got {type(guide).__name__}; write "
            "weight_posteriors(guide, *args) for a guide written by hand"
        ) from None
