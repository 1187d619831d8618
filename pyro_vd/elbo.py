"""TraceVD_ELBO: the evidence lower bound with an analytic KL at every site and a choice of gradient estimator.

loss = -ELBO = sum over data of -log p(y | x, w) * plate scale + kl_weight * sum over sites of KL(q || p)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_if_enumerated, check_site_shape
from torch import Tensor

from pyro_vd._pyro import check_mean_field_requirement, parameters_met
from pyro_vd._pyro_interrupted import handlers_kept
from pyro_vd._torch import has_values
from pyro_vd.arguments import FAILURES, check_instance_given, check_programs, explain
from pyro_vd.buffers import keep_plain_buffers
from pyro_vd.checks import (
    GuideCovers,
    check_gradient,
    check_observed,
    check_sites,
    holds_non_finite,
    non_finite_input,
    warn_of_single_draws,
)
from pyro_vd.common.options import check_count, check_flag, check_number
from pyro_vd.common.terms import LossTerms
from pyro_vd.handlers import EstimatorMessenger, run_coherently
from pyro_vd.loss_module import LossModule
from pyro_vd.rollback import gradients_added, undone
from pyro_vd.seeded import RUNS, SeedWatch
from pyro_vd.site_terms import add_share, kl_of_sites, nll_of_sites, not_finite


class TraceVD_ELBO(ELBO):
    """Negative ELBO for guides of random weights.

    Works in ``pyro.infer.SVI``, and as ``TraceVD_ELBO()(model, guide)``, a module that returns the loss, with any
    ``torch.optim``. For models without random weights it does what Pyro's ``TraceMeanField_ELBO`` does: plates, masks,
    auxiliary sites; and counts the ``log_density`` of a Delta, the Jacobian of an ``AutoNormal``, which it leaves out,
    and masks of the model alone at a point, as by ``AutoDelta``. A seed that model, guide or net set in the first two
    runs, which then have the same noise, is warned of; one that was set before already cannot be seen.

    Args:
        estimator: how layers use a random weight: "local" (noise per output element, the local
            reparameterization trick), "shared" (one draw a step), "per_example", "flipout". A guide's plain ``Normal``
            of two event dimensions or more, outside of plates, is a random weight too.
        num_particles: number of evaluations averaged. A step of ``pyro.infer.SVI`` takes them one after the other,
            forward and backward, in the memory of one; the loss module and CompiledSVI have one backward pass for all.
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

    See also:
        :class:`pyro_vd.CompiledSVI`, :func:`pyro_vd.compile_loss`, :class:`pyro_vd.LossTerms`, :func:`pyro_vd.lrt`.
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
        self._seeds = SeedWatch()

    def __new__(cls, estimator: Any = "local", *args: Any, **options: Any) -> TraceVD_ELBO:
        check_instance_given(cls, estimator)
        return super().__new__(cls)

    __new__.__wrapped__ = __init__  # type: ignore[attr-defined]  # whose signature the class has

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
        with undone(only_on_failure=True):
            return self._terms(model, guide, args, kwargs)

    def _terms(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> LossTerms:
        """As :meth:`terms`, within a rollback: one is entered a step, by whoever is called first."""
        check_programs(model, guide)
        nll: dict[str, Tensor] = {}
        kl: dict[str, Tensor] = {}
        with handlers_kept():
            for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
                kl_of_run = kl_of_sites(model_trace, guide_trace, self.analytic_only)
                add_share(nll, nll_of_sites(model_trace), self.num_particles)
                add_share(kl, kl_of_run, self.num_particles)
        zero = 0.0 if nll and kl else torch.zeros(())
        return LossTerms(nll, kl, self.kl_weight, zero)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a 0-dim tensor; an error where it is NaN or infinite, on a CPU: it waits for no other device."""
        with undone(only_on_failure=True):
            terms = self._terms(model, guide, args, kwargs)
            loss = terms.loss
            if loss.is_cpu and has_values() and (loss - loss).is_nonzero():  # 0 unless NaN or infinite
                raise not_finite(terms, loss, non_finite_input(guide, args, kwargs, model))
            return loss

    def checked_terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LossTerms:
        """As :meth:`terms`, with an error that names the site where a term is NaN or infinite."""
        with undone(only_on_failure=True):
            return self._evaluated(model, guide, args, kwargs)[0]

    def _evaluated(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[LossTerms, Tensor]:
        """As :meth:`checked_terms`, with the loss, which it looks at; for callers that undo what a failure has left."""
        if isinstance(self.kl_weight, Tensor):
            check_number("kl_weight", self.kl_weight, at_least=0)
        terms = self._terms(model, guide, args, kwargs)
        loss = terms.loss
        # Inputs may hold NaN and infinity where the loss does not depend on them, such as the mask of an attention.
        if math.isfinite(loss.item()):
            return terms, loss
        raise not_finite(terms, loss, non_finite_input(guide, args, kwargs, model))

    @undone()
    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number. It is not a step: buffers stay as they are."""
        return float(self._evaluated(model, guide, args, kwargs)[1].detach())

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; adds its gradient to the parameters. All or nothing: an error adds none.

        One particle after the other, forward and backward, in the memory of one.
        """
        number = 1 if self.vectorize_particles else self.num_particles
        one: TraceVD_ELBO = self if number == 1 else copy.copy(self)
        if number > 1:
            one.num_particles = 1
        nll: dict[str, Tensor] = {}
        kl: dict[str, Tensor] = {}
        capture: Any
        with undone(only_on_failure=True), gradients_added() as begin:
            for _ in range(number):
                with poutine.trace(param_only=True) as capture:
                    terms, loss = one._evaluated(model, guide, args, kwargs)
                if loss.requires_grad:
                    met = parameters_met(capture.trace)
                    if holds_non_finite(args, kwargs):
                        check_gradient(loss, met, args, kwargs)
                    begin(met.values())
                    (loss / number if number > 1 else loss).backward(retain_graph=self.retain_graph)
                if number == 1:
                    return float(loss.detach())
                for total, values in ((nll, terms.nll), (kl, terms.kl)):
                    add_share(total, {site: value.detach() for site, value in values.items()}, number)
                del terms, loss  # before the next particle is evaluated
            return float(LossTerms(nll, kl, self.kl_weight).loss)  # an interrupt here adds no gradient either

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, Messenger):
            guide(*args, **kwargs)
            model_trace, guide_trace = map(prune_subsample_sites, unwrapped.get_traces())  # type: ignore[attr-defined]
        else:
            again = self._messenger.reuse == "shared"
            guide_trace, model_trace = run_coherently(
                lambda: self._run(model, guide, args, kwargs), rewind=again, once=not again
            )
            for trace in (guide_trace, model_trace):  # our own, which need no copy
                for name in [name for name, site in trace.nodes.items() if site_is_subsample(site)]:
                    trace.remove_node(name)
        check_sites(model_trace, guide_trace)
        check_observed(model_trace)
        try:
            model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        except FAILURES as error:
            explain(error, "model", args, kwargs)
            raise
        if is_validation_enabled():
            check_if_enumerated(guide_trace)
            _check_order(model_trace, guide_trace)
            site: Any
            for site in (*model_trace.nodes.values(), *guide_trace.nodes.values()):
                if site["type"] == "sample":
                    shaped: Any = {"log_prob": torch.zeros(()).expand(site["fn"].batch_shape), **site}
                    check_site_shape(shaped, cast(Any, self.max_plate_nesting))
        return model_trace, guide_trace

    def _run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        keep_plain_buffers(model, guide)
        seed = torch.initial_seed() if self._seeds.runs < RUNS else None
        try:
            guide_trace = _Run()(self._messenger(guide)).get_trace(*args, **kwargs)
        except FAILURES as error:
            explain(error, "guide", args, kwargs)
            raise
        covers = GuideCovers(guide_trace)
        try:
            model_trace = _Run()(covers(model)).get_trace(*args, **kwargs)
        except FAILURES as error:
            explain(error, "model", args, kwargs)
            # Validation of a likelihood names neither the site nor the input that is at fault.
            reason = non_finite_input(guide_trace, args, kwargs) if isinstance(error, ValueError) else None
            if reason is None:
                raise
            raise ValueError(f"the model failed on non-finite input: {reason}") from error
        warn_of_single_draws(covers.weights, guide_trace, self._messenger)
        if seed is not None:
            self._seeds.end(seed)
        return guide_trace, model_trace


def _check_order(model_trace: Any, guide_trace: Any) -> None:
    """Pyro's check of the order of sites, without those that depend on no other: the weights of automatic guides."""
    free = {name for name, site in guide_trace.nodes.items() if site.get("infer", {}).get("is_mean_field")}
    if free:
        traces = (model_trace, guide_trace)
        model_trace, guide_trace = (
            SimpleNamespace(nodes={name: site for name, site in trace.nodes.items() if name not in free})
            for trace in traces
        )
    check_mean_field_requirement(model_trace, guide_trace)


class _Run(TraceMessenger):
    """The trace of one run, which is used once. It has no use for parameters."""

    sees_parameters = False

    def get_trace(self) -> Any:  # Pyro's own makes a copy
        return self.trace
