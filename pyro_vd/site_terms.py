"""The terms of a loss, site by site: what the traces of model and guide say of the data and of each weight.

nll = -sum over data of log p(y | x, w) * plate scale,    kl = KL(q || p), or a log density where there is no KL
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vd.checks import check_scales, describe, is_point
from pyro_vd.common.terms import LossTerms
from pyro_vd.fixed import Fixed
from pyro_vd.posteriors.fixed import is_by_element, kl_of_free_elements
from pyro_vd.posteriors.sites import base_distribution
from pyro_vd.weights import RandomWeight


def nll_of_sites(model_trace: Any) -> dict[str, Tensor]:
    """Negative log likelihood of each observed site, nats; their log_probs are evaluated."""
    return {name: -model_trace.nodes[name]["log_prob_sum"] for name in model_trace.observation_nodes}


def kl_of_sites(model_trace: Any, guide_trace: Any, analytic_only: bool) -> dict[str, Tensor]:
    """KL of each latent site of the model, then the auxiliary sites of the guide, whose term is log q; nats.

    Raises:
        ValueError: a pair without a KL rule, if ``analytic_only``; scales that differ.
    """
    kl = {
        name: _site_kl(name, model_trace, guide_trace, analytic_only) for name, _ in model_trace.iter_stochastic_nodes()
    }
    for name, site in guide_trace.nodes.items():
        counts = site["type"] == "sample" and not site["infer"].get("_deterministic")
        if counts and name not in model_trace.nodes:  # pyro.factor counts too
            of = name.removesuffix("_unconstrained")
            kl[name] = _log_prob_sum(site, _constants(of, model_trace, guide_trace) if of != name else None)
    return kl


def _site_kl(name: str, model_trace: Any, guide_trace: Any, analytic_only: bool) -> Tensor:
    model_site, guide_site = model_trace.nodes[name], guide_trace.nodes[name]
    constants = functools.partial(_constants, name, model_trace, guide_trace)
    q, p, fixed = guide_site["fn"], model_site["fn"], model_site.get("fixed")
    check_scales(name, model_site["scale"], guide_site["scale"])
    try:
        if is_point(name, guide_trace):  # a log density, under the mask of its own site
            return _log_prob_sum(guide_site, constants()) - _log_prob_sum(model_site, constants())
        if isinstance(base_distribution(q), Delta):  # whose rule in pyro/distributions/kl.py is without log_density
            kl = _log_prob(guide_site, constants()) - _log_prob(model_site, constants())
        else:
            kl = kl_divergence(q, p) if fixed is None else kl_of_free_elements(q, p, fixed())
    except NotImplementedError:
        if analytic_only:
            names = " and ".join(describe(fn) for fn in (q, p))
            raise ValueError(
                f"site {name!r}: expected a pair of distributions with a KL rule, got guide and prior {names}; "
                "register one with torch.distributions.register_kl, or write TraceVD_ELBO(analytic_only=False) "
                "for a Monte Carlo estimate"
            ) from None
        return _log_prob_sum(guide_site, constants()) - _log_prob_sum(model_site, constants())
    except ValueError as error:
        raise ValueError(f"site {name!r}: {error}") from error
    kl = scale_and_mask(kl, scale=guide_site["scale"], mask=guide_site["mask"])
    return kl.sum() if isinstance(kl, Tensor) else torch.tensor(float(kl))


def not_finite(terms: LossTerms, loss: Tensor, reason: str | None) -> ValueError:
    """The error for a loss that is not finite, which names the site."""
    reason = reason or "no input of the step is at fault; is a learning rate too high?"
    for name, group in (("negative log likelihood", terms.nll), ("KL", terms.kl)):
        for site, value in group.items():
            if not math.isfinite(number := value.item()):
                return ValueError(f"site {site!r}: expected a finite {name}, got {number}: {reason}")
    return ValueError(f"expected a finite loss, got {loss.item()} with kl_weight={terms.kl_weight}: {reason}")


def _constants(name: str, model_trace: Any, guide_trace: Any) -> Fixed | None:
    """What layers keep fixed of a weight, where its own terms can be told from those of the other elements."""
    site = model_trace.nodes.get(name, {})
    if "fixed" not in site:
        return None
    parts = [site["fn"], guide_trace.nodes[name]["fn"]]
    if isinstance(base_distribution(parts[1]), Delta):  # of AutoNormal, with the noise in a site of its own
        noise: Any = guide_trace.nodes.get(f"{name}_unconstrained")
        is_joint = noise is None and any(s["infer"].get("is_auxiliary") for _, s in guide_trace.iter_stochastic_nodes())
        if not is_joint:
            parts[1:] = [] if noise is None else [noise["fn"]]
    return site["fixed"]() if all(is_by_element(fn) for fn in parts) else None


def _log_prob(site: Any, fixed: Fixed | None) -> Tensor:
    value, fn = site["value"], site["fn"]
    value = value.scored_draw() if isinstance(value, RandomWeight) else value
    if fixed is not None and is_by_element(fn):
        return fixed.zero_in(fn.base_dist.log_prob(value)).sum()
    return fn.log_prob(value, *site["args"], **site["kwargs"])


def _log_prob_sum(site: Any, fixed: Fixed | None = None) -> Tensor:
    return scale_and_mask(_log_prob(site, fixed), scale=site["scale"], mask=site["mask"]).sum()


def add_share(total: dict[str, Tensor], particle: dict[str, Tensor], number: int) -> None:
    """Add the share of one of so many particles to the mean of each site."""
    for site, value in particle.items():
        value = value / number if number > 1 else value
        total[site] = total[site] + value if site in total else value
