"""TraceVD_ELBO: the evidence lower bound with an analytic KL at every site and a choice of gradient estimator.

loss = -ELBO = sum over data of -log p(y | x, w) * plate scale + kl_weight * sum over sites of KL(q || p)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import scale_and_mask
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer.elbo import ELBO
from numpyro.util import check_model_guide_match

from pyro_vd.common.options import check_count, check_flag
from pyro_vd.common.terms import LossTerms
from pyro_vd.numpyro._jax import is_known_false
from pyro_vd.numpyro._numpyro import check_mean_field_requirement
from pyro_vd.numpyro.arguments import check_call
from pyro_vd.numpyro.checks import (
    GuideCovers,
    check_finite_number,
    check_labels,
    check_parameter_sites,
    check_scales,
    check_sites,
    describe,
    latent_sites,
    non_finite_input,
    warn_of_single_draws,
)
from pyro_vd.numpyro.handlers import EstimatorMessenger, Reuse, SharedSites
from pyro_vd.numpyro.weights import RandomWeight, run_counted

jax.tree_util.register_dataclass(LossTerms)


class TraceVD_ELBO(ELBO):
    """Negative ELBO for guides of random weights.

    Works in ``numpyro.infer.SVI``. For models without random weights it does what NumPyro's ``TraceMeanField_ELBO``
    does: plates, subsampling, masks, auxiliary sites.

    Every method that runs a program takes ``kl_weight=`` among the keywords of the step, for that step alone:
    ``svi.update(svi_state, x, y, kl_weight=0.1)``. It does not reach model and guide, and may be traced, so that a
    warm-up compiles once; under ``lax.scan`` scan over the weights beside the data.

    Args:
        estimator: how layers use a random weight: "local" (noise per output element, the local
            reparameterization trick), "shared" (one draw a step), "per_example", "flipout".
        num_particles: number of evaluations averaged.
        kl_weight: weight of the KL, a number or a 0-dim array >= 0, where a step gives none. A compiled step
            would not see it change, so it cannot be reassigned.
        analytic_only: with False, a pair of distributions without a registered KL rule is estimated from the
            draw of the trace; with True (the default) it is an error, but for the sites that a guide of
            :mod:`pyro_vd.guides.numpyro` covers beside the weights (a noise scale), which are always estimated.
        shared_sites, reuse, strict: see :func:`pyro_vd.numpyro.lrt`.
        vectorize_particles: see :class:`numpyro.infer.elbo.ELBO`.

    Raises:
        ValueError: a guide that misses or adds a site, or has one that the model observes; a pair without a KL rule;
            a model scale that differs from the guide's; observed values of another shape than their likelihood;
            ``params`` that miss a parameter or have one more; no random key; outside of jit, NaN or infinity in a
            term: from :meth:`loss`, ``svi.evaluate`` and an ``svi.update`` that is not compiled, whose state is then
            that of before. A compiled step (``jax.jit(svi.update)``, ``svi.run``) knows no values and cannot raise:
            it returns the loss that is not finite and parameters that are NaN; there
            ``jax.jit(svi.stable_update)`` keeps the state of before (not compiled, it raises as ``svi.update``).
            ``svi.init`` computes no loss and takes any data.
        TypeError: a model, guide, parameter or data of a wrong type.
        NotImplementedError: a latent site that is not reparameterised.

    Example:
        >>> elbo = TraceVD_ELBO(estimator="local", kl_weight=0.1)
        >>> elbo.kl_weight
        0.1

    References:
        Kingma et al. 2015, arXiv:1506.02557, equations 1-3.

    See also:
        :class:`pyro_vd.numpyro.LossTerms`, :func:`pyro_vd.numpyro.lrt`.
    """

    def __init__(
        self,
        estimator: str = "local",
        num_particles: int = 1,
        kl_weight: float | Array = 1.0,
        *,
        analytic_only: bool = True,
        shared_sites: SharedSites = (),
        reuse: Reuse = "error",
        strict: bool = False,
        vectorize_particles: bool | Callable = False,
    ):
        num_particles = check_count("num_particles", num_particles, 1)
        check_flag("analytic_only", analytic_only)
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        check_finite_number("kl_weight", kl_weight)
        self.analytic_only = analytic_only
        self._options: tuple = (estimator, shared_sites, reuse, strict)
        self._warned = EstimatorMessenger(None, *self._options).warned  # also checks the options
        self._kl_weight = kl_weight

    @property
    def estimator(self) -> str:
        return self._options[0]

    @property
    def kl_weight(self) -> float | Array:
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float | Array) -> None:
        raise AttributeError(
            f"kl_weight: expected it where a step is taken, got an assignment of {value!r}, which a compiled step "
            "would not see; write svi.update(svi_state, ..., kl_weight=...)"
        )

    def terms(
        self, rng_key: Array, params: Mapping[str, Any], model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> LossTerms:
        """The data term and the KL of each site, differentiable."""
        return self._terms(rng_key, params, model, guide, args, kwargs)[0]

    def checked_terms(
        self, rng_key: Array, params: Mapping[str, Any], model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> LossTerms:
        """As :meth:`terms`, with an error that names the site where a term is NaN or infinite; not under jit."""
        terms, _ = self._terms(rng_key, params, model, guide, args, kwargs)
        self._check_finite(terms, rng_key, params, guide, args, kwargs)
        return terms

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss as a 0-dim array, and the mutable sites after it, averaged over particles (None without one)."""
        terms, state = self._terms(rng_key, param_map, model, guide, args, kwargs)
        finite = jnp.isfinite(terms.loss)
        if is_known_false(finite):  # under the gradient of an update that is not compiled too
            self._check_finite(terms, rng_key, param_map, guide, args, kwargs)
        # In a compiled step, which cannot raise, a loss that is not finite leaves the state as it was.
        before = {name: param_map[name] for name in state if name in param_map}
        kept = {name: jax.tree.map(partial(jnp.where, finite), state[name], old) for name, old in before.items()}
        return {"loss": terms.loss, "mutable_state": (state | kept) or None}

    def _terms(
        self, rng_key: Any, params: Mapping[str, Any], model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[LossTerms, dict]:
        params = check_call("TraceVD_ELBO", rng_key, params, model, guide, args, kwargs)
        kwargs = dict(kwargs)
        kl_weight = kwargs.pop("kl_weight", self._kl_weight)
        check_finite_number("kl_weight", kl_weight)

        def particle(key: Array) -> tuple[dict, dict, dict]:
            model_trace, guide_trace = self._traces(key, params, model, guide, args, kwargs)
            state = {n: s["value"] for t in (guide_trace, model_trace) for n, s in t.items() if s["type"] == "mutable"}
            return _nll(model_trace), self._kl(model_trace, guide_trace), state

        if self.num_particles == 1:
            nll, kl, state = particle(rng_key)
        else:
            particles = self.vectorize_particles_fn(particle, jax.random.split(rng_key, self.num_particles))
            nll, kl = (jax.tree.map(lambda value: value.mean(0), terms) for terms in particles[:2])
            # Counters are the same in all particles.
            state = jax.tree.map(
                lambda value: value.mean(0) if jnp.issubdtype(value.dtype, jnp.floating) else value[0], particles[2]
            )
        return LossTerms(nll, kl, kl_weight, jnp.zeros(())), state

    def _traces(
        self, rng_key: Array, params: Mapping[str, Any], model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[Any, Any]:
        model_key, guide_key = jax.random.split(rng_key)
        try:
            guide_trace = self._guide_trace(guide_key, params, guide, args, kwargs)
        except ValueError as error:
            _explain("guide", error, non_finite_input(params, {}, (), {}))
            raise
        check_parameter_sites("TraceVD_ELBO", params, guide_trace)
        changed = {name: site["value"] for name, site in guide_trace.items() if site["type"] == "mutable"}

        def run(drawn: Mapping[str, Any]) -> tuple[Any, Any]:
            guide_ran: Any = {
                name: {**s, "value": drawn[name]} if name in drawn else s for name, s in guide_trace.items()
            }
            replayed = substitute(replay(seed(model, model_key), guide_ran), data={**params, **changed})
            return trace(GuideCovers(replayed, guide_ran)).get_trace(*args, **kwargs), guide_ran

        try:
            model_trace, guide_trace = run_counted(run, {n: s["value"] for n, s in latent_sites(guide_trace)})
        except ValueError as error:
            _explain("model", error, non_finite_input(params, guide_trace, args, kwargs))
            raise
        check_sites(model_trace, guide_trace)
        check_parameter_sites("TraceVD_ELBO", params, guide_trace, model_trace)
        check_labels(model_trace)
        estimator, shared_sites, *_ = self._options
        warn_of_single_draws(model_trace, guide_trace, estimator, shared_sites, self._warned)
        check_model_guide_match(model_trace, guide_trace)
        check_mean_field_requirement(model_trace, guide_trace)
        return model_trace, guide_trace

    def _guide_trace(self, key: Array, params: Mapping[str, Any], guide: Any, args: tuple, kwargs: dict) -> Any:
        messenger = EstimatorMessenger(seed(guide, key), *self._options)
        messenger.warned = self._warned
        return trace(substitute(messenger, data=dict(params))).get_trace(*args, **kwargs)

    def _kl(self, model_trace: Any, guide_trace: Any) -> dict[str, Array]:
        """KL of each latent site of the model, then the auxiliary sites of the guide, whose term is log q."""
        kl = {name: self._site_kl(name, site, guide_trace[name]) for name, site in latent_sites(model_trace)}
        auxiliary = {name: site for name, site in latent_sites(guide_trace) if name not in model_trace}
        return kl | {name: _log_prob_sum(site) for name, site in auxiliary.items()}

    def _site_kl(self, name: str, model_site: Any, guide_site: Any) -> Array:
        q, p = guide_site["fn"], model_site["fn"]
        check_scales(name, model_site["scale"], guide_site["scale"])
        try:
            kl = kl_divergence(q, p)
        except NotImplementedError:
            if self.analytic_only and not guide_site["infer"].get("estimate_kl"):
                names = " and ".join(describe(fn) for fn in (q, p))
                raise ValueError(
                    f"site {name!r}: expected a pair of distributions with a KL rule, got guide and prior {names}; "
                    "register one with numpyro.distributions.kl.kl_divergence, or write "
                    "TraceVD_ELBO(analytic_only=False) for a Monte Carlo estimate"
                ) from None
            return _log_prob_sum(guide_site) - _log_prob_sum(model_site)
        except ValueError as error:
            raise ValueError(f"site {name!r}: {error}") from error
        return jnp.sum(scale_and_mask(kl, scale=guide_site["scale"]))

    def _check_finite(
        self, terms: LossTerms, rng_key: Array, params: Mapping[str, Any], guide: Any, args: tuple, kwargs: dict
    ) -> None:
        if bool(jnp.isfinite(terms.loss)):
            return
        nll, kl, loss = jax.lax.stop_gradient((terms.nll, terms.kl, terms.loss))  # known under a gradient too
        kwargs = {name: value for name, value in kwargs.items() if name != "kl_weight"}
        guide_trace = self._guide_trace(rng_key, params, guide, args, kwargs)
        reason = non_finite_input(params, guide_trace, args, kwargs)
        reason = reason or "no input of the step is at fault; is a learning rate too high?"
        for name, group in (("negative log likelihood", nll), ("KL", kl)):
            for site, value in group.items():
                if not bool(jnp.isfinite(value)):
                    raise ValueError(f"site {site!r}: expected a finite {name}, got {float(value)}: {reason}")
        raise ValueError(f"expected a finite loss, got {float(loss)} with kl_weight={terms.kl_weight}: {reason}")


def _explain(program: str, error: ValueError, reason: str | None) -> None:
    """Raise an error with the reason, if there is one: validation names neither the site nor the input at fault."""
    if reason is not None:
        raise ValueError(f"the {program} failed on non-finite input: {reason}; its error was: {error}") from error


def _nll(model_trace: Any) -> dict[str, Array]:
    observed = {n: s for n, s in model_trace.items() if s["type"] == "sample" and s["is_observed"]}
    return {name: -_log_prob_sum(site) for name, site in observed.items()}


def _log_prob_sum(site: Any) -> Array:
    value = site["value"]
    value = value.scored_draw() if isinstance(value, RandomWeight) else value
    more = (site["intermediates"],) if site["intermediates"] else ()
    return jnp.sum(scale_and_mask(site["fn"].log_prob(value, *more), scale=site["scale"]))
