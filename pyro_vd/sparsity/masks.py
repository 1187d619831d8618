"""Which weights stay: those whose noise ratio is not over a threshold, given, or found for a share of the weights.

mask = log_alpha <= log_alpha_threshold
"""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList
from torch import Tensor

from pyro_vd.arguments import check_whole
from pyro_vd.common.guide_options import check_made
from pyro_vd.common.options import check_callable, check_site_names, kind_of
from pyro_vd.posteriors import WeightPosterior
from pyro_vd.posteriors.sites import base_distribution

Posteriors = Mapping[str, WeightPosterior] | Callable
Sparsity = float | Mapping[str, float] | None

DEFAULT_THRESHOLD = 3.0  # of log_alpha, natural log: Molchanov et al. 2017, section 5
TOLERATED_MISS = 0.01  # of a share: weights with one log_alpha are pruned together, and a share is met up to a group


def keep_masks(
    guide: Posteriors, log_alpha_threshold: float = DEFAULT_THRESHOLD, sparsity: Sparsity = None
) -> dict[str, Tensor]:
    """True where a weight stays, for every weight of a guide: ``log_alpha <= log_alpha_threshold``.

    Args:
        guide: a guide of :mod:`pyro_vd.guides`, or the dict that :func:`weight_posteriors` returns.
        log_alpha_threshold: natural log of the noise ratio; 3 is a dropout rate of 0.95. ``math.inf`` keeps all.
        sparsity: the share of the weights to prune, 0..1, in the place of a threshold: those with the largest
            ``log_alpha``. A number: of all weights of the guide together. A mapping from site or pattern (first match)
            to a share: of each site by itself; ``{"*": 0.9}`` takes 0.9 of every one. Weights that have one
            ``log_alpha`` (a unit, a layer) are pruned together, and no more than the share are pruned, rounded
            to a whole number of weights.

    Returns:
        ``{site: mask}`` in the order of the guide; each boolean, of the shape of the weight.

    Raises:
        ValueError: a ``log_alpha`` that is NaN; a threshold that is NaN; a share outside of 0..1; threshold and share
            both; a mapping that names no site, or leaves one out.
        TypeError: a threshold or a share that is not a number.

    Example:
        >>> from pyro_vd.posteriors import DropoutNormal
        >>> q = DropoutNormal(torch.tensor([1.0, 0.1, 0.01, 2.0]), log_sigma2=-3.0)
        >>> keep_masks({"w": q})
        {'w': tensor([ True,  True, False,  True])}
        >>> keep_masks({"w": q}, sparsity=0.5)
        {'w': tensor([ True, False, False,  True])}

    References:
        Molchanov et al. 2017, arXiv:1701.05369, section 5.

    See also:
        :func:`pyro_vd.prune`, :func:`pyro_vd.threshold_curve`.
    """
    posteriors = posteriors_of(guide)
    thresholds = find_thresholds(posteriors, log_alpha_threshold, sparsity)
    return {site: keep_mask(q, thresholds[site]) for site, q in posteriors.items()}


def keep_mask(posterior: WeightPosterior, log_alpha_threshold: float = DEFAULT_THRESHOLD) -> Tensor:
    """True where a weight stays: ``log_alpha <= log_alpha_threshold``, in the shape of the weight."""
    if not isinstance(posterior, WeightPosterior):
        raise TypeError(
            f"keep_mask: expected a posterior such as a DropoutNormal, got {kind_of(posterior)}; write "
            "keep_mask(guide.posterior(site)), or keep_masks(guide)"
        )
    check_number("log_alpha_threshold", log_alpha_threshold, "3.0, or math.inf for the mean network")
    return (posterior.log_alpha.detach() <= log_alpha_threshold).expand(posterior.loc.shape)


def find_thresholds(
    posteriors: Mapping[str, WeightPosterior], log_alpha_threshold: float, sparsity: Sparsity
) -> dict[str, float]:
    """The threshold of every site, all arguments checked; see :func:`keep_masks`."""
    log_alphas = {site: q.log_alpha.detach().expand(q.loc.shape) for site, q in posteriors.items()}
    for site, log_alpha in log_alphas.items():
        if count := int(log_alpha.isnan().sum()):
            raise ValueError(
                f"site {site!r}: expected a log_alpha for every weight, got {count} NaN of {log_alpha.numel()}; the "
                "training of this guide has failed: look at its loss, and lower the learning rate"
            )
    shares = shares_of_sites(list(log_alphas), log_alpha_threshold, sparsity)
    if shares is None:
        return dict.fromkeys(log_alphas, float(log_alpha_threshold))
    if isinstance(shares, dict):
        return {site: _threshold_for(shares[site], [log_alphas[site]], f"site {site!r}") for site in log_alphas}
    return dict.fromkeys(log_alphas, _threshold_for(shares, list(log_alphas.values()), "all sites"))


def shares_of_sites(sites: list[str], log_alpha_threshold: Any, sparsity: Any) -> dict[str, float] | float | None:
    """``sparsity`` checked and, where it is a mapping, by site; None where the threshold counts, checked too."""
    if not sites:
        raise ValueError("guide: expected the posterior of at least one weight, got none; look at guide.posteriors()")
    threshold = check_number("log_alpha_threshold", log_alpha_threshold, "3.0, or math.inf for the mean network")
    if sparsity is None:
        return None
    if threshold != DEFAULT_THRESHOLD:
        raise ValueError(
            f"sparsity: expected a threshold or a share, got log_alpha_threshold={threshold:g} and sparsity="
            f"{sparsity!r}; leave one of them out"
        )
    if not isinstance(sparsity, Mapping):
        return check_share("sparsity", sparsity)
    for pattern in sparsity:
        if not isinstance(pattern, str) or not fnmatch.filter(sites, pattern):
            raise ValueError(f"sparsity: expected sites or patterns of {sites}, got {pattern!r}")
    found: dict[str, float] = {}
    for site in sites:
        patterns = [pattern for pattern in sparsity if fnmatch.fnmatchcase(site, pattern)]
        if not patterns:
            raise ValueError(
                f"sparsity: expected a share for every site of {sites}, got none for {site!r}; write {{..., '*': 0.0}} "
                "to keep the rest whole"
            )
        found[site] = check_share(f"sparsity[{patterns[0]!r}]", sparsity[patterns[0]])
    return found


def warn_of_miss(where: str, share: float, reached: float) -> None:
    """Warn that a share cannot be reached, because groups of weights have one ``log_alpha``."""
    if share - reached > TOLERATED_MISS:
        warnings.warn(
            f"sparsity={share:g} of {where}: {reached:.3g} is reached, since the next weights have one log_alpha and "
            "are pruned together or not at all",
            stacklevel=2,
        )


def _threshold_for(share: float, log_alphas: list[Tensor], where: str) -> float:
    """The largest ``log_alpha`` that stays when at most ``share`` of the weights, rounded to a number of them, go."""
    values = torch.cat([log_alpha.flatten() for log_alpha in log_alphas])
    kept = values.numel() - round(share * values.numel())
    threshold = values.kthvalue(kept).values.item() if kept else -math.inf
    warn_of_miss(where, share, (values > threshold).float().mean().item())
    return threshold


def check_number(name: str, value: Any, instead: str) -> float:
    """An argument as a number that is not NaN, or an error that says what to write ``instead``."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
        value = type(value).__name__
    if math.isnan(number):
        kind = ValueError if isinstance(value, float) else TypeError
        raise kind(f"{name}: expected a number, got {value!r}; write {instead}")
    return number


def check_share(name: str, value: Any) -> float:
    """An argument as a share in 0..1, or an error."""
    share = check_number(name, value, "a share such as 0.9")
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: expected a share in 0..1, got {share:g}; write 0.9 to prune nine of ten weights")
    return share


def weight_posteriors(guide: Callable, *args: Any, **kwargs: Any) -> dict[str, WeightPosterior]:
    """The distribution of every random weight that a guide samples, from one run of it.

    For guides written by hand; those of :mod:`pyro_vd.guides` have ``guide.posteriors()``.

    Args:
        guide: any Pyro guide.
        *args, **kwargs: its arguments.

    Returns:
        ``{site: posterior}`` in the order of the guide, without ``to_event``.

    Raises:
        TypeError: ``guide`` is no function.

    Example:
        >>> import pyro, pyro_vd as vd
        >>> def guide():
        ...     pyro.sample("w", vd.DropoutNormal(torch.ones(1, 2), log_sigma2=-2.0).to_event(2))
        >>> weight_posteriors(guide)["w"].log_alpha
        tensor([[-2., -2.]])

    See also:
        :func:`pyro_vd.posterior_mean`, :func:`pyro_vd.sparsity_report`, :func:`pyro_vd.weight_bits`.
    """
    check_callable("guide", guide, "a Pyro guide", "write weight_posteriors(guide, *args)", "weight_posteriors")
    trace = poutine.block(poutine.trace(guide).get_trace)(*args, **kwargs)
    found = {name: base_distribution(site["fn"]) for name, site in trace.iter_stochastic_nodes()}
    return {name: fn for name, fn in found.items() if isinstance(fn, WeightPosterior)}


def posteriors_of(guide: Posteriors) -> Mapping[str, WeightPosterior]:
    """The distribution of every weight: of a guide, of the parts of a mixed one, or as given."""
    if isinstance(guide, Mapping):
        check_site_names("guide", guide)
        for site, q in guide.items():
            if not isinstance(q, WeightPosterior):
                raise TypeError(
                    f"site {site!r}: expected a posterior such as a DropoutNormal, got {kind_of(q)}; pass the guide, "
                    "or what guide.posteriors() returns"
                )
            check_whole(f"site {site!r}", q.given().items())
        return guide
    if isinstance(guide, AutoGuideList):  # whose parts may be guides of Pyro, of a noise scale
        parts = [part for part in guide if isinstance(part, AutoGuideList) or hasattr(part, "posteriors")]
        return {site: q for part in parts for site, q in posteriors_of(part).items()}
    check_made(guide)
    try:
        with poutine.block():
            found = guide.posteriors()  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(
            f"expected a guide of pyro_vd.guides or a dict of posteriors, got {type(guide).__name__}; write "
            "weight_posteriors(guide, *args) for a guide written by hand"
        ) from None
    return posteriors_of(found)
