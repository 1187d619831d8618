"""Effect handlers that choose which value a random weight's site gets: the gradient estimator of a guide."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

import numpyro
from numpyro.distributions import Distribution, Independent, TransformedDistribution
from numpyro.primitives import Messenger

from pyro_vd.common.options import check_choice, check_flag, check_known, check_names
from pyro_vd.numpyro import rules as _rules  # noqa: F401, tells Quax what to do with a random weight
from pyro_vd.numpyro.arguments import check_program, require_key
from pyro_vd.numpyro.estimators import ESTIMATORS
from pyro_vd.numpyro.posteriors import WeightPosterior
from pyro_vd.numpyro.weights import RandomWeight, WeightState

Reuse = Literal["error", "independent", "shared"]
SharedSites = Collection[str] | Literal["auto"]

REUSES = ("error", "independent", "shared")


def lrt(fn: Callable | None = None, *, shared_sites: SharedSites = (), reuse: Reuse = "error", strict: bool = False):
    """Put a random weight in place of every weight draw of a guide: local reparameterization.

    For use with an ELBO of NumPyro that takes the KL in closed form, ``SVI(model, lrt(guide), optim,
    TraceMeanField_ELBO())``; :class:`pyro_vd.numpyro.TraceVD_ELBO` does the same by itself. Sites whose
    distribution is a :class:`pyro_vd.numpyro.posteriors.WeightPosterior` are replaced; every other site is left
    as it is. The random key of a site is the one that ``numpyro.handlers.seed`` gives it.

    Args:
        fn: the guide; without one, the handler itself is returned, for ``with lrt():``.
        shared_sites: sites that are drawn once a step instead; "auto" for those, and only those, that are used
            twice (as ``reuse="shared"``), which one warning names.
        reuse: "error" where a weight is used twice in one trace; "independent" to sample each use
            with noise of its own; "shared" to draw it once. Under this handler alone the uses within one call of a
            BayesianModule are seen beforehand; under TraceVD_ELBO all uses in the model are.
        strict: raise ValueError, instead of one warning, where an operation has no rule.

    Returns:
        The wrapped guide, or the handler.

    Raises:
        ValueError: unknown ``reuse``; a name in ``shared_sites`` that the guide does not have; a site without a
            random key; a weight used twice.

    Example:
        >>> import jax, numpyro, jax.numpy as jnp
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> def guide():
        ...     return numpyro.sample("w", DropoutNormal(jnp.ones((3, 2)), log_sigma2=-2.0).to_event(2))
        >>> weight = numpyro.handlers.seed(lrt(guide), jax.random.key(0))()
        >>> (jnp.ones((5, 3)) @ weight).shape  # five rows, each with noise of its own
        (5, 2)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.3.

    See also:
        :func:`pyro_vd.numpyro.flipout`, :func:`pyro_vd.numpyro.per_example`, :func:`pyro_vd.numpyro.lrt_report`,
        :class:`pyro_vd.numpyro.TraceVD_ELBO`.
    """
    return _handler("local", fn, shared_sites, reuse, strict)


def per_example(
    fn: Callable | None = None, *, shared_sites: SharedSites = (), reuse: Reuse = "error", strict: bool = False
):
    """As :func:`lrt`, with one whole weight draw for every example (Kingma et al. 2015, section 2.2).

    Example:
        See :func:`lrt`.

    See also:
        :func:`pyro_vd.numpyro.lrt`, :func:`pyro_vd.numpyro.flipout`, :func:`pyro_vd.numpyro.gradient_variance`.
    """
    return _handler("per_example", fn, shared_sites, reuse, strict)


def flipout(
    fn: Callable | None = None, *, shared_sites: SharedSites = (), reuse: Reuse = "error", strict: bool = False
):
    """As :func:`lrt`, with one perturbation whose signs flip per example (Wen et al. 2018, arXiv:1803.04386).

    Example:
        See :func:`lrt`.

    See also:
        :func:`pyro_vd.numpyro.lrt`, :func:`pyro_vd.numpyro.per_example`, :func:`pyro_vd.numpyro.gradient_variance`.
    """
    return _handler("flipout", fn, shared_sites, reuse, strict)


def posterior_mean(fn: Callable | None = None) -> Any:
    """Give every latent site of a guide the mean of its distribution: no noise (weight scaling, the mean network).

    A site beside the weights on another support than the real line (a noise scale) gets its median.

    Args:
        fn: the guide; without one, the handler itself is returned, for ``with posterior_mean():``.

    Returns:
        The wrapped guide, or the handler.

    Example:
        >>> import jax, numpyro, jax.numpy as jnp
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> def guide():
        ...     return numpyro.sample("w", DropoutNormal(jnp.ones((1, 2)), log_sigma2=-2.0).to_event(2))
        >>> numpyro.handlers.seed(posterior_mean(guide), jax.random.key(0))().tolist()
        [[1.0, 1.0]]

    See also:
        :func:`pyro_vd.numpyro.weight_posteriors`, :func:`pyro_vd.numpyro.prune`.
    """
    return _MeanMessenger(fn)


class _MeanMessenger(Messenger):
    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            msg["value"] = center(msg["fn"])


def center(fn: Any) -> Any:
    """The mean; of a distribution mapped from the real line, without a closed form, the image of the mean there."""
    try:
        return fn.mean
    except NotImplementedError:
        base = base_distribution(fn)
        if not isinstance(base, TransformedDistribution):
            raise
        value = center(base.base_dist)
        for transform in base.transforms:
            value = transform(value)
        return value


class EstimatorMessenger(Messenger):
    """The handler behind :func:`lrt`, :func:`per_example` and :func:`flipout`."""

    def __init__(
        self,
        fn: Callable | None,
        estimator: str,
        shared_sites: SharedSites = (),
        reuse: Reuse = "error",
        strict: bool = False,
    ):
        check_choice("estimator", estimator, ESTIMATORS)
        check_flag("strict", strict)
        shared, second_use = shared_and_reuse(shared_sites, reuse)
        if fn is not None:
            check_program(estimator, "guide", fn)
        super().__init__(fn)
        self.estimator, self.shared_sites, self.reuse, self.strict = estimator, shared, second_use, strict
        self.warned: set[tuple[str, str]] = set()
        self._seen: list[str] = []

    def __enter__(self) -> Any:
        self._seen = []
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            check_known("shared_sites", sorted(self.shared_sites), self._seen, "sites of the guide")

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample":
            return
        self._seen.append(msg["name"])
        if self.estimator == "shared" or msg["name"] in self.shared_sites:
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
        key = require_key(f"site {site!r}", numpyro.prng_key() if key is None else key)
        state = WeightState(site, self.estimator, self.reuse, self.strict, self.warned)
        msg["value"] = RandomWeight(posterior.noise(), posterior.variance, key, state)


def base_distribution(fn: Any) -> Distribution:
    """The distribution under any ``to_event``."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def shared_and_reuse(shared_sites: Any, reuse: Any) -> tuple[tuple[str, ...], str]:
    """The sites that are shared by name, and what to do with others that are used twice.

    Raises:
        ValueError: unknown ``reuse``, or one that contradicts ``shared_sites``.
        TypeError: ``shared_sites`` is not a list of names.
    """
    check_choice("reuse", reuse, REUSES)
    if isinstance(shared_sites, str) and shared_sites == "auto":
        if reuse == "independent":
            raise ValueError(
                "shared_sites: expected names with reuse='independent', got 'auto', which draws once what the other "
                "samples independently; write one of the two"
            )
        return (), "shared"
    return check_names("shared_sites", shared_sites), reuse


def _handler(estimator: str, fn: Callable | None, shared_sites: SharedSites, reuse: Reuse, strict: bool) -> Any:
    return EstimatorMessenger(fn, estimator, shared_sites, reuse, strict)
