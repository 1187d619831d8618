"""Effect handlers that choose which value a random weight's site gets: the gradient estimator of a guide."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpyro
from numpyro.distributions import Distribution, Independent
from numpyro.primitives import Messenger

from pyro_vd.numpyro import rules as _rules  # noqa: F401, tells Quax what to do with a random weight
from pyro_vd.numpyro.estimators import ESTIMATORS, check_key
from pyro_vd.numpyro.posteriors import WeightPosterior
from pyro_vd.numpyro.weights import RandomWeight, WeightState


def lrt(fn: Callable | None = None, *, shared_sites: Collection[str] = (), reuse: str = "error", strict: bool = False):
    """Put a random weight in place of every weight draw of a guide: local reparameterization.

    For use with an ELBO of NumPyro that takes the KL in closed form, ``SVI(model, lrt(guide), optim,
    TraceMeanField_ELBO())``; :class:`pyro_vd.numpyro.TraceVD_ELBO` does the same by itself. Sites whose
    distribution is a :class:`pyro_vd.numpyro.posteriors.WeightPosterior` are replaced; every other site is left
    as it is. The random key of a site is the one that ``numpyro.handlers.seed`` gives it.

    Args:
        fn: the guide; without one, the handler itself is returned, for ``with lrt():``.
        shared_sites: sites that are drawn once a step instead.
        reuse: "error" where a weight is used twice in one trace; "independent" to sample each use
            with noise of its own.
        strict: raise ValueError, instead of one warning, where an operation has no rule.

    Returns:
        The wrapped guide, or the handler.

    Raises:
        ValueError: unknown ``reuse``; a site without a random key.

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.3.
    """
    return _handler("local", fn, shared_sites, reuse, strict)


def per_example(
    fn: Callable | None = None, *, shared_sites: Collection[str] = (), reuse: str = "error", strict: bool = False
):
    """As :func:`lrt`, with one whole weight draw for every example (Kingma et al. 2015, section 2.2)."""
    return _handler("per_example", fn, shared_sites, reuse, strict)


def flipout(
    fn: Callable | None = None, *, shared_sites: Collection[str] = (), reuse: str = "error", strict: bool = False
):
    """As :func:`lrt`, with one perturbation whose signs flip per example (Wen et al. 2018, arXiv:1803.04386)."""
    return _handler("flipout", fn, shared_sites, reuse, strict)


def posterior_mean(fn: Callable | None = None) -> Any:
    """Give every latent site of a guide the mean of its distribution: no noise (weight scaling, the mean network).

    Args:
        fn: the guide; without one, the handler itself is returned, for ``with posterior_mean():``.

    Returns:
        The wrapped guide, or the handler.
    """
    return _MeanMessenger(fn)


class _MeanMessenger(Messenger):
    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            msg["value"] = msg["fn"].mean


class EstimatorMessenger(Messenger):
    """The handler behind :func:`lrt`, :func:`per_example` and :func:`flipout`."""

    def __init__(
        self,
        fn: Callable | None,
        estimator: str,
        shared_sites: Collection[str] = (),
        reuse: str = "error",
        strict: bool = False,
    ):
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator: expected one of {', '.join(map(repr, ESTIMATORS))}, got {estimator!r}")
        if reuse not in ("error", "independent"):
            raise ValueError(f"reuse: expected 'error' or 'independent', got {reuse!r}")
        if isinstance(shared_sites, str):
            raise TypeError(
                f"shared_sites: expected a list of site names, got {shared_sites!r}; write [{shared_sites!r}]"
            )
        super().__init__(fn)
        self.estimator, self.shared_sites, self.reuse, self.strict = estimator, set(shared_sites), reuse, strict
        self.warned: set[tuple[str, str]] = set()

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or self.estimator == "shared" or msg["name"] in self.shared_sites:
            return
        if msg["is_observed"] or msg["value"] is not None or msg["infer"].get("is_auxiliary"):
            return
        posterior = base_distribution(msg["fn"])
        if not isinstance(posterior, WeightPosterior) or msg["kwargs"]["sample_shape"]:
            return
        site = msg["name"]
        if self.estimator not in posterior.estimators:
            raise ValueError(
                f"site {site!r}: expected an estimator that {type(posterior).__name__} has a form for "
                f"({', '.join(posterior.estimators)}), got {self.estimator!r}; choose one of them, or "
                f"shared_sites=[{site!r}]"
            )
        key = msg["kwargs"]["rng_key"]
        key = check_key(f"site {site!r}", numpyro.prng_key() if key is None else key)
        state = WeightState(site, self.estimator, self.reuse, self.strict, self.warned)
        msg["value"] = RandomWeight(posterior.noise(), posterior.variance, key, state)


def base_distribution(fn: Any) -> Distribution:
    """The distribution under any ``to_event``."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _handler(estimator: str, fn: Callable | None, shared_sites: Collection[str], reuse: str, strict: bool) -> Any:
    return EstimatorMessenger(fn, estimator, shared_sites, reuse, strict)
