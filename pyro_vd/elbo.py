"""TraceVD_ELBO: the evidence lower bound with an analytic KL at every site and a choice of gradient estimator.

loss = -ELBO = sum over data of -log p(y | x, w) * plate scale + kl_weight * sum over sites of KL(q || p)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import Any, Literal, cast

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_site_shape
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vd._pyro import check_mean_field_requirement, parameters_met
from pyro_vd._pyro_interrupted import handlers_kept
from pyro_vd.arguments import check_programs, data_explained
from pyro_vd.checks import (
    GuideCovers,
    check_gradient,
    check_observed,
    check_scales,
    check_sites,
    describe,
    holds_non_finite,
    is_point,
    non_finite_input,
    warn_of_single_draws,
)
from pyro_vd.common.options import check_count, check_flag, check_number
from pyro_vd.common.terms import LossTerms
from pyro_vd.fixed import Fixed
from pyro_vd.handlers import EstimatorMessenger, base_distribution, run_coherently
from pyro_vd.loss_module import LossModule
from pyro_vd.posteriors.fixed import is_by_element, kl_of_free_elements
from pyro_vd.rollback import gradients_added, undone
from pyro_vd.weights import RandomWeight


class TraceVD_ELBO(ELBO):
    """Negative ELBO for guides of random weights.

    Works in ``pyro.infer.SVI``, and as ``TraceVD_ELBO()(model, guide)``, a module that returns the loss, with any
    ``torch.optim``. For models without random weights it does what Pyro's ``TraceMeanField_ELBO`` does: plates, masks,
    auxiliary sites; and counts the ``log_density`` of a Delta, the Jacobian of an ``AutoNormal``, which it leaves out,
    and masks of the model alone at a point, as by ``AutoDelta``.

    Args:
        estimator: how layers use a random weight: "local" (noise per output element, the local
            reparameterization trick), "shared" (one draw a step), "per_example", "flipout". A guide's plain ``Normal``
            of two event dimensions or more, outside of plates, is a random weight too.
        num_particles: number of evaluations averaged.
        kl_weight: weight of the KL, a number or a 0-dim tensor >= 0; may be reassigned, or filled in
            place, between steps.
        analytic_only: with False, a pair of distributions without a registered KL rule is estimated from the
            draw of the trace; with True (the default) it is an error.
        shared_sites, reuse, strict: see :func:`pyro_vd.lrt`.
        max_plate_nesting, vectorize_particles, strict_enumeration_warning, retain_graph: see :class:`pyro.infer.ELBO`.

    Raises:
        ValueError: a guide that misses or adds a site, a pair without a KL rule, a model scale that differs from
            the guide's, NaN or infinity in a term (by ``SVI.step`` and by calling the module, before any
            parameter changes).
        NotImplementedError: a latent site that is not reparameterised.

    Example:
        >>> elbo = TraceVD_ELBO(estimator="local", kl_weight=0.1)
        >>> elbo.kl_weight = 1.0

    References:
        Kingma et al. 2015, arXiv:1506.02557, equations 1-3.
    """

    def __init__(
        self,
        estimator: Literal["local", "shared", "per_example", "flipout"] = "local",
        num_particles: int = 1,
        kl_weight: float | Tensor = 1.0,
        *,
        analytic_only: bool = True,
        shared_sites: Collection[str] = (),
        reuse: Literal["error", "independent"] = "error",
        strict: bool = False,
        max_plate_nesting: Any = float("inf"),
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        retain_graph: bool | None = None,
    ):
        for name, flag in (("analytic_only", analytic_only), ("vectorize_particles", vectorize_particles)):
            check_flag(name, flag)
        super().__init__(
            num_particles=check_count("num_particles", num_particles, 1),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            retain_graph=retain_graph,
        )
        self.analytic_only = analytic_only
        self._messenger = EstimatorMessenger(estimator, shared_sites, reuse, strict, normals=True)
        self.kl_weight = kl_weight

    def __repr__(self) -> str:
        options = f"num_particles={self.num_particles}, kl_weight={self.kl_weight}"
        return f"TraceVD_ELBO(estimator={self.estimator!r}, {options})"

    @property
    def estimator(self) -> str:
        return self._messenger.estimator

    @property
    def kl_weight(self) -> float | Tensor:
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            if value.dim() != 0:
                raise ValueError(f"kl_weight: expected a number or a 0-dim tensor, got shape {tuple(value.shape)}")
            if not (value.is_floating_point() or value.dtype in (torch.int32, torch.int64)):
                raise ValueError(f"kl_weight: expected a real number, got a tensor of {value.dtype}; write .float()")
        else:
            value = check_number("kl_weight", value, at_least=0)
        self._kl_weight = value

    def __call__(self, model: Callable, guide: Callable) -> LossModule:  # type: ignore[override]
        """A ``torch.nn.Module`` whose call returns the loss and whose parameters are those of model and guide."""
        check_programs(model, guide)
        return LossModule(model, guide, self)

    def terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LossTerms:
        """The data term and the KL of each site, differentiable, without a host synchronisation."""
        check_programs(model, guide)
        nll: dict[str, Tensor] = {}
        kl: dict[str, Tensor] = {}
        with handlers_kept(), undone(only_on_failure=True):
            for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
                for total, particle in ((nll, _nll(model_trace)), (kl, self._kl(model_trace, guide_trace))):
                    for site, value in particle.items():
                        value = value / self.num_particles if self.num_particles > 1 else value
                        total[site] = total[site] + value if site in total else value
        zero = 0.0 if nll and kl else torch.zeros(())
        return LossTerms(nll, kl, self.kl_weight, zero)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a 0-dim tensor, without a host synchronisation and without a check for NaN."""
        return self.terms(model, guide, *args, **kwargs).loss

    @undone(only_on_failure=True)
    def checked_terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LossTerms:
        """As :meth:`terms`, with an error that names the site where a term is NaN or infinite."""
        if isinstance(self.kl_weight, Tensor):
            check_number("kl_weight", self.kl_weight, at_least=0)
        terms = self.terms(model, guide, *args, **kwargs)
        # Inputs may hold NaN and infinity where the loss does not depend on them, such as the mask of an attention.
        if bool(torch.isfinite(terms.loss)):
            return terms
        reason = non_finite_input(guide, args, kwargs)
        reason = reason or "no input of the step is at fault; is a learning rate too high?"
        for name, group in (("negative log likelihood", terms.nll), ("KL", terms.kl)):
            for site, value in group.items():
                if not math.isfinite(float(value.detach())):
                    raise ValueError(f"site {site!r}: expected a finite {name}, got {float(value.detach())}: {reason}")
        raise ValueError(
            f"expected a finite loss, got {float(terms.loss.detach())} with kl_weight={self.kl_weight}: {reason}"
        )

    @undone()
    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number. It is not a step: buffers stay as they are."""
        return float(self.checked_terms(model, guide, *args, **kwargs).loss.detach())

    @undone(only_on_failure=True)
    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; adds its gradient to the parameters. All or nothing: an error adds none."""
        capture: Any
        with poutine.trace(param_only=True) as capture:
            loss = self.checked_terms(model, guide, *args, **kwargs).loss
        if loss.requires_grad:
            met = parameters_met(capture.trace)
            if holds_non_finite(args, kwargs):
                check_gradient(loss, met, args, kwargs)
            with gradients_added(met.values()):
                loss.backward(retain_graph=self.retain_graph)
                return float(loss.detach())
        return float(loss.detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, Messenger):
            guide(*args, **kwargs)
            model_trace, guide_trace = unwrapped.get_traces()  # type: ignore[attr-defined]
        else:
            guide_trace, model_trace = run_coherently(
                lambda: self._run(model, guide, args, kwargs), rewind=self._messenger.reuse == "shared"
            )
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        check_sites(model_trace, guide_trace)
        check_observed(model_trace)
        with data_explained("model", args, kwargs):
            model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        if is_validation_enabled():
            check_if_enumerated(guide_trace)
            check_mean_field_requirement(model_trace, guide_trace)
            site: Any
            for site in (*model_trace.nodes.values(), *guide_trace.nodes.values()):
                if site["type"] == "sample":
                    shaped: Any = {"log_prob": torch.zeros(()).expand(site["fn"].batch_shape), **site}
                    check_site_shape(shaped, cast(Any, self.max_plate_nesting))
        return model_trace, guide_trace

    def _run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        with data_explained("guide", args, kwargs):
            guide_trace = poutine.trace(self._messenger(guide)).get_trace(*args, **kwargs)
        covers = GuideCovers(guide_trace)
        replayed = poutine.replay(covers(model), trace=guide_trace)
        try:
            with data_explained("model", args, kwargs):
                model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        except ValueError as error:
            # Validation of a likelihood names neither the site nor the input that is at fault.
            reason = non_finite_input(guide_trace, args, kwargs)
            if reason is None:
                raise
            raise ValueError(f"the model failed on non-finite input: {reason}") from error
        warn_of_single_draws(covers.weights, guide_trace, self._messenger)
        return guide_trace, model_trace

    def _kl(self, model_trace: Any, guide_trace: Any) -> dict[str, Tensor]:
        """KL of each latent site of the model, then the auxiliary sites of the guide, whose term is log q."""
        kl = {name: self._site_kl(name, model_trace, guide_trace) for name, _ in model_trace.iter_stochastic_nodes()}
        for name, site in guide_trace.nodes.items():
            counts = site["type"] == "sample" and not site["infer"].get("_deterministic")
            if counts and name not in model_trace.nodes:  # pyro.factor counts too
                of = name.removesuffix("_unconstrained")
                kl[name] = _log_prob_sum(site, _constants(of, model_trace, guide_trace) if of != name else None)
        return kl

    def _site_kl(self, name: str, model_trace: Any, guide_trace: Any) -> Tensor:
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
            if self.analytic_only:
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


def _nll(model_trace: Any) -> dict[str, Tensor]:
    return {name: -model_trace.nodes[name]["log_prob_sum"] for name in model_trace.observation_nodes}


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
