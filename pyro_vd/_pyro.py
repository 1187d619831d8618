"""The private corners of Pyro: its parameter store's tables, its handler stack, and what evaluates a trace.

Tried with the versions of Pyro that ``constraints.txt`` names. Sources: https://github.com/pyro-ppl/pyro,
``pyro/params/param_store.py`` (``_params``), ``pyro/poutine/messenger.py`` (``_context_wrap``),
``pyro/poutine/runtime.py`` (``_PYRO_STACK``), ``pyro/optim/optim.py`` (``_get_optim``,
``_state_waiting_to_be_consumed``), ``pyro/poutine/trace_struct.py`` and ``pyro/infer/trace_mean_field_elbo.py``.
``tests/pyro_seam/test_pyro_corners.py`` has one test for each, which names what broke; those of ``pyro.optim`` are
tested by ``tests/compiled/test_svi_saved.py``.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement as check_mean_field_requirement  # noqa: F401
from pyro.optim import PyroOptim
from pyro.optim.optim import _load_state_dict
from pyro.poutine.messenger import Messenger, _bound_partial, _context_wrap
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints


class _Registered:
    """Which tensors of the store modules of this library have put there themselves.

    A tensor that is there without having been put there was loaded. ``pyro.clear_param_store()`` gives the store
    another table, which ends all that was known of the old one.
    """

    def __init__(self) -> None:
        self._table: Any = None
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor | None:
        return self._tensors.get(name) if self._table is pyro.get_param_store()._params else None

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        table = pyro.get_param_store()._params
        if self._table is not table:
            self._table, self._tensors = table, {}
        self._tensors[name] = tensor


_registered = _Registered()


def adopt_stored_value(name: str, parameter: nn.Parameter, constraint: Any = constraints.real) -> None:
    """Put ``parameter`` into Pyro's store under ``name``; a value that was loaded into the store is copied to it first.

    The store has the last word where it was loaded: it may hold a checkpoint. But the tensor stays that of the module,
    so that an optimizer over its parameters trains what the model uses. Where the store has a parameter that another
    module has put there, ``parameter`` takes its place, and both keep their values.

    Args:
        name: full name of the parameter.
        parameter: in unconstrained space.
        constraint: what Pyro constrains it by.

    Raises:
        ValueError: the store's tensor has another shape.
    """
    store = pyro.get_param_store()
    stored = store._params.get(name)
    if stored is parameter and _registered[name] is parameter:
        return
    if stored is not None and stored is not parameter:
        if stored.shape != parameter.shape:
            raise ValueError(
                f"parameter {name!r}: expected shape {tuple(parameter.shape)}, got {tuple(stored.shape)} in Pyro's "
                "parameter store, from another model of that name; write pyro.clear_param_store(), or give one of "
                "their BayesianModules another name="
            )
        if stored is not _registered[name]:
            with torch.no_grad():
                parameter.copy_(stored)
    store._constraints[name] = constraint
    store._params[name] = parameter
    store._param_to_name[parameter] = name
    _registered[name] = parameter


def under_handler(fn: Any) -> Callable | None:
    """What a handler such as ``poutine.block(fn)`` wraps; None where ``fn`` is no wrapped function."""
    split = _split(fn)
    return None if split is None else split[1]


def innermost(fn: Callable) -> Callable:
    """What all handlers around ``fn`` wrap."""
    while (inner := under_handler(fn)) is not None:
        fn = inner
    return fn


def in_handlers_of(fn: Any, inner: Callable) -> Callable:
    """``inner`` under the handlers that ``fn`` is wrapped in, the same objects."""
    split = _split(fn)
    return inner if split is None else split[0](in_handlers_of(split[1], inner))


def _split(fn: Any) -> tuple[Messenger, Callable] | None:
    wrapped = fn.func if isinstance(fn, _bound_partial) else fn
    if isinstance(wrapped, functools.partial) and wrapped.func is _context_wrap and len(wrapped.args) == 2:
        return wrapped.args[0], wrapped.args[1]
    return None


def handlers_are_active() -> bool:
    """Whether the caller runs under effect handlers of its own, which no recording would know of."""
    return bool(_PYRO_STACK)


_SCORING = {Trace.compute_log_prob.__code__, Trace.compute_score_parts.__code__, Trace.log_prob_sum.__code__}


def is_scoring() -> bool:
    """Whether Pyro is evaluating log_probs of a finished trace.

    Pyro's own ELBOs evaluate the log_prob of every site, weights too, also where the KL is analytic. That is no
    use of the weight by the model, and nothing in the arguments tells one from the other.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _SCORING:
            return True
        frame = frame.f_back
    return False


def store_tables() -> tuple[dict, dict, dict]:
    """The tables of Pyro's parameter store: unconstrained values by name, names by value, constraints by name."""
    store = pyro.get_param_store()
    return store._params, store._param_to_name, store._constraints  # type: ignore[return-value]


def make_optimizers(optim: PyroOptim, parameters: Iterable[torch.Tensor]) -> None:
    """Make the optimizers of torch that the first call of a ``pyro.optim`` optimizer makes, and load their states."""
    names = store_tables()[1]
    for parameter in parameters:
        if parameter in optim.optim_objs:
            continue
        optim.optim_objs[parameter] = one = optim._get_optim(parameter)  # type: ignore[arg-type]
        optim.grad_clip[parameter] = optim._get_grad_clip(parameter)  # type: ignore[arg-type]
        state = optim._state_waiting_to_be_consumed.pop(names.get(parameter), None)
        if state is not None:
            _load_state_dict(one, state)


def load_optimizers(optim: PyroOptim, states: dict[str, Any]) -> None:
    """As ``optim.set_state(states)``, and those that are made already load theirs at once."""
    names = store_tables()[1]
    optim.set_state(states)
    for parameter, one in optim.optim_objs.items():
        state = optim._state_waiting_to_be_consumed.pop(names.get(parameter), None)
        if state is not None:
            _load_state_dict(one, state)


def pyro_optimizer_tables(optim: PyroOptim) -> tuple[dict, ...]:
    """The dicts of a ``pyro.optim`` optimizer: attributes, optimizers, clipping, states that wait for a parameter."""
    return vars(optim), optim.optim_objs, optim.grad_clip, optim._state_waiting_to_be_consumed


def store_dicts() -> list[dict]:
    """The dicts of Pyro's parameter store: that of its tables, and the tables."""
    return [vars(pyro.get_param_store()), *store_tables()]


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Within it an interrupt may leave handlers on Pyro's stack; at the end it is as before."""
    before = list(_PYRO_STACK)
    try:
        yield
    finally:
        _PYRO_STACK[:] = before


class Unvalidated(Messenger):
    """Samples every site from a copy of its distribution that does not look at values.

    ``pyro.validation_enabled(False)`` holds for distributions that are made within it. This is for those that were made
    before: a prior of a ``PyroSample``, say. The user's own distribution is left as it is.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = _unvalidated(msg["fn"])


def _unvalidated(fn: Any) -> Any:
    if not isinstance(fn, torch.distributions.Distribution):
        return fn
    fn = copy.copy(fn)
    for name, value in list(vars(fn).items()):
        if isinstance(value, torch.distributions.Distribution):  # base_dist, and those of a mixture
            vars(fn)[name] = _unvalidated(value)
    vars(fn)["_validate_args"] = False
    return fn
