"""Effect handlers that choose which value a random weight's site gets: the gradient estimator of a guide."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_vd._pyro import is_scoring
from pyro_vd._torch import noise_rewound_on_failure
from pyro_vd.arguments import check_guide
from pyro_vd.common.options import check_choice, check_flag, check_known, check_names
from pyro_vd.estimators import ESTIMATORS
from pyro_vd.exchange import ONE_RUN
from pyro_vd.posteriors import WeightPosterior
from pyro_vd.posteriors.sites import weight_posterior
from pyro_vd.rollback import undone
from pyro_vd.weights import RandomWeight, WeightState
from pyro_vd.weights.reuse import WeightsUsedTwice, all_reuses

REUSES = ("error", "independent", "shared")

Run = TypeVar("Run")


def lrt(fn: Callable | None = None, *, shared_sites: Collection[str] = (), reuse: str = "error", strict: bool = False):
    """Put a random weight in place of every weight draw of a guide: local reparameterization.

    For use with any ELBO of Pyro, ``SVI(model, lrt(guide), optim, TraceMeanField_ELBO())``;
    :class:`pyro_vd.TraceVD_ELBO` does the same by itself. Sites whose distribution is a
    :class:`pyro_vd.posteriors.WeightPosterior` are replaced; every other site is left as it is.

    A stock ELBO of Pyro takes the step of a loss that is not finite, with a warning for NaN and without one for
    infinity: parameters and the buffers of BatchNorm change. A handler of the guide never sees that loss; look at what
    ``SVI.step`` returns, by ``math.isfinite``. ``TraceVD_ELBO`` raises, and leaves both.

    Args:
        fn: the guide; without one, the handler itself is returned, for ``with lrt():``.
        shared_sites: sites that are drawn once a step instead. "auto" is ``reuse="shared"``.
        reuse: where a weight is used twice in one trace: "error" names all such sites; "shared" draws those, and
            only those, once a step, and says so once; "independent" samples each use with noise of its own. Here,
            without a model, "shared" looks ahead with an automatic guide, which knows its model; with a guide by
            hand, use :class:`pyro_vd.TraceVD_ELBO`.
        strict: raise ValueError, instead of one warning, where an operation has no rule.

    Returns:
        The wrapped guide, or the handler.

    Raises:
        ValueError: unknown ``reuse``, or "auto" with another; after a run, a name in ``shared_sites`` that the guide
            does not have.
        TypeError: a guide that cannot be called; ``shared_sites`` that are not a list of names.

    Example:
        >>> import pyro, pyro_vd as vd
        >>> with lrt():
        ...     weight = pyro.sample("w", vd.DropoutNormal(torch.ones(2, 3), log_sigma2=-2.0).to_event(2))
        >>> weight
        RandomWeight(site='w', shape=(2, 3), estimator='local')
        >>> torch.nn.functional.linear(torch.ones(5, 3), weight).shape  # five rows, each with noise of its own
        torch.Size([5, 2])

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.3.

    See also:
        :func:`pyro_vd.flipout`, :func:`pyro_vd.per_example`, :func:`pyro_vd.lrt_report`,
        :class:`pyro_vd.TraceVD_ELBO`.
    """
    return _handler("local", fn, shared_sites, reuse, strict)


def per_example(
    fn: Callable | None = None, *, shared_sites: Collection[str] = (), reuse: str = "error", strict: bool = False
):
    """As :func:`lrt`, with one whole weight draw for every example (Kingma et al. 2015, section 2.2).

    Example:
        >>> import pyro, pyro_vd as vd
        >>> with per_example():
        ...     weight = pyro.sample("w", vd.DropoutNormal(torch.ones(2, 3), log_sigma2=-2.0).to_event(2))
        >>> torch.nn.functional.linear(torch.ones(5, 3), weight).shape
        torch.Size([5, 2])

    See also:
        :func:`pyro_vd.lrt`, :func:`pyro_vd.flipout`, :func:`pyro_vd.gradient_variance`.
    """
    return _handler("per_example", fn, shared_sites, reuse, strict)


def flipout(
    fn: Callable | None = None, *, shared_sites: Collection[str] = (), reuse: str = "error", strict: bool = False
):
    """As :func:`lrt`, with one perturbation whose signs flip per example (Wen et al. 2018, arXiv:1803.04386).

    Example:
        >>> import pyro, pyro_vd as vd
        >>> with flipout():
        ...     weight = pyro.sample("w", vd.DropoutNormal(torch.ones(2, 3), log_sigma2=-2.0).to_event(2))
        >>> torch.nn.functional.linear(torch.ones(5, 3), weight).shape
        torch.Size([5, 2])

    See also:
        :func:`pyro_vd.lrt`, :func:`pyro_vd.per_example`, :func:`pyro_vd.gradient_variance`.
    """
    return _handler("flipout", fn, shared_sites, reuse, strict)


def posterior_mean(fn: Callable | None = None) -> Any:
    """Give every latent site of a guide the mean of its distribution: no noise (weight scaling, the mean network).

    Args:
        fn: the guide; without one, the handler itself is returned, for ``with posterior_mean():``.

    Returns:
        The wrapped guide, or the handler.

    Example:
        >>> import pyro, pyro_vd as vd
        >>> def guide():
        ...     return pyro.sample("w", vd.DropoutNormal(torch.ones(1, 2), log_sigma2=-2.0).to_event(2))
        >>> posterior_mean(guide)()
        tensor([[1., 1.]])

    See also:
        :func:`pyro_vd.weight_posteriors`, :func:`pyro_vd.prune`.
    """
    messenger = _MeanMessenger()
    return messenger if fn is None else messenger(check_guide(fn))


class _MeanMessenger(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = msg["fn"].mean


class EstimatorMessenger(Messenger):
    """The handler behind :func:`lrt`, :func:`per_example` and :func:`flipout`.

    With ``normals``, a plain ``Normal`` of two event dimensions or more, outside of plates, is a random weight as well.
    With ``coherent``, what a model makes of a weight has the joint distribution that one draw of it gives.
    """

    sees_parameters = False

    def __init__(
        self,
        estimator: str,
        shared_sites: Collection[str] = (),
        reuse: str = "error",
        strict: bool = False,
        normals: bool = False,
        coherent: bool = False,
    ):
        super().__init__()
        check_choice("estimator", estimator, ESTIMATORS)
        check_choice("reuse", reuse, REUSES)
        if isinstance(shared_sites, str) and shared_sites == "auto":
            if reuse == "independent":
                raise ValueError(
                    "shared_sites: expected a list of site names with reuse='independent', got 'auto', which draws a "
                    "weight that is used twice once; leave out one of them"
                )
            shared_sites, reuse = (), "shared"
        self.shared_sites = set(check_names("shared_sites", shared_sites))
        self.estimator, self.reuse, self.strict = estimator, reuse, check_flag("strict", strict)
        self.normals, self.coherent = normals, coherent
        self.warned: set[tuple[str, str]] = set()
        self._met: list[str] = []  # the latent sites of this run

    def __enter__(self) -> Any:
        self._met = []
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            check_known("shared_sites", sorted(self.shared_sites), self._met, "sites of the guide")

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            self._met.append(msg["name"])
        if msg["is_observed"] or msg["value"] is not None or msg["infer"].get("is_auxiliary"):
            return
        if "estimator" in msg:
            return  # another of these handlers, nearer to the site, has chosen
        msg["estimator"] = self.estimator
        if self.estimator == "shared" or msg["name"] in self.shared_sites:
            return
        posterior: Any = weight_posterior(msg, self.normals)
        if not isinstance(posterior, WeightPosterior):
            return
        site = msg["name"]
        if self.estimator not in posterior.estimators:
            family = type(getattr(posterior, "free", posterior)).__name__  # under what a layer keeps fixed
            raise ValueError(
                f"site {site!r}: expected an estimator that {family} has a form for "
                f"({', '.join(posterior.estimators)}), got {self.estimator!r}; choose one of them, or "
                f"shared_sites=[{site!r}]"
            )
        noise = posterior.noise()
        state = WeightState(site, noise, self.estimator, self.reuse, self.strict, self.warned, is_scoring)
        state.shared_sites, state.coherent = self.shared_sites, self.coherent
        variance = noise.variance if noise.independent else None
        msg["value"] = RandomWeight(noise, posterior.variance if variance is None else variance, state)


def _handler(estimator: str, fn: Callable | None, shared_sites: Collection[str], reuse: str, strict: bool) -> Any:
    messenger = EstimatorMessenger(estimator, shared_sites, reuse, strict)
    if fn is None:
        return messenger
    check_guide(fn)
    if messenger.reuse == "shared" and callable(model := getattr(fn, "model", None)):
        return _looking_ahead(messenger, fn, model)
    return messenger(fn)


def _looking_ahead(messenger: EstimatorMessenger, guide: Callable, model: Callable) -> Callable:
    """``messenger(guide)``; at the first call the model is run too, for the weights that it uses twice."""
    looked = False

    @functools.wraps(guide, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal looked

        def both() -> None:
            trace = poutine.trace(messenger(guide)).get_trace(*args, **kwargs)
            poutine.replay(model, trace=trace)(*args, **kwargs)

        if not looked:
            with poutine.block(), torch.no_grad(), torch.random.fork_rng(), undone():
                run_coherently(both)
            looked = True
        return messenger(guide)(*args, **kwargs)

    return wrapped


def run_coherently(run: Callable[[], Run], rewind: bool = False, once: bool = False) -> Run:
    """``run()``, a run of guide and model under an estimator.

    Where it uses weights twice, one error names them all; or, under ``reuse="shared"``, they are drawn once from now
    on and it is run again.

    Args:
        run: calls guide and model.
        rewind: give the second run the random numbers of the first.
        once: no run follows another, since nothing is "shared" for being used twice; buffers are the caller's to undo.
    """
    if once:
        with ONE_RUN, all_reuses():
            return run()
    while True:
        try:
            noise = noise_rewound_on_failure() if rewind else nullcontext()
            with ONE_RUN, noise, undone(only_on_failure=True), all_reuses():
                return run()
        except WeightsUsedTwice as error:
            if not error.states or any(state.reuse != "shared" for state in error.states):
                raise
            found = sorted({state.site for state in error.states})
            for state in error.states:
                state.shared_sites.add(state.site)
            warnings.warn(
                f"sites {found}: used twice in one run of the model, and so drawn once a step (shared_sites={found})",
                stacklevel=3,
            )
