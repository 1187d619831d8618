"""The private corners of Pyro: its parameter store's tables, its handler stack, and what evaluates a trace.

Tried with pyro-ppl 1.9.2. Sources: https://github.com/pyro-ppl/pyro,
``pyro/params/param_store.py`` (``_params``), ``pyro/poutine/messenger.py`` (``_context_wrap``),
``pyro/poutine/runtime.py`` (``_PYRO_STACK``), ``pyro/poutine/trace_struct.py``,
``pyro/infer/trace_mean_field_elbo.py``, ``pyro/optim/optim.py`` (``_get_optim``,
``_state_waiting_to_be_consumed``), and for runs without a step ``pyro/infer/predictive.py``, ``pyro/infer/elbo.py`` and
``pyro/infer/autoguide/guides.py``. ``test_pyro_corners.py`` and ``test_run_corners.py`` in ``tests/pyro_seam`` have
one test for each, which names what broke; those of ``pyro.optim`` are tested by ``tests/compiled/test_svi_saved.py``,
and ``pyro/poutine/subsample_messenger.py`` (``_Subsample``) by ``tests/predict/test_predictive_distribution.py``.
"""

from __future__ import annotations

import copy
import functools
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro.infer import predictive
from pyro.infer.autoguide.guides import AutoGuide
from pyro.infer.elbo import ELBO
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement as check_mean_field_requirement  # noqa: F401
from pyro.optim import PyroOptim
from pyro.optim.optim import _load_state_dict
from pyro.poutine.messenger import Messenger, _bound_partial, _context_wrap
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints


class _Registered:
    """The tensors that modules of this library have put into Pyro's store.

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


def adopt_stored_value(name: str, parameter: nn.Parameter, constraint: Any = constraints.real) -> bool:
    """Put ``parameter`` into Pyro's store under ``name``; a value that was loaded into the store is copied to it first.

    A loaded store has priority, since it may hold a checkpoint. But the tensor stays that of the module,
    so that an optimizer over its parameters trains what the model uses. Where the store has a parameter that another
    module has put there, ``parameter`` takes its place, and both keep their values.

    Args:
        name: full name of the parameter.
        parameter: in unconstrained space.
        constraint: its constraint in Pyro.

    Returns:
        Whether the store did not have it before.

    Raises:
        ValueError: the store's tensor has another shape.
    """
    store = pyro.get_param_store()
    stored = store._params.get(name)
    if stored is parameter and _registered._table is store._params and _registered._tensors.get(name) is parameter:
        return False
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
    return True


def under_handler(fn: Any) -> Callable | None:
    """What a handler such as ``poutine.block(fn)`` wraps; None where ``fn`` is not a wrapped function."""
    split = _split(fn)
    return None if split is None else split[1]


def innermost(fn: Callable) -> Callable:
    """What all handlers around ``fn`` wrap."""
    while (inner := under_handler(fn)) is not None:
        fn = inner
    return fn


def in_handlers_of(fn: Any, inner: Callable) -> Callable:
    """``inner`` wrapped in the handlers of ``fn``, which are the same objects."""
    split = _split(fn)
    return inner if split is None else split[0](in_handlers_of(split[1], inner))


def _split(fn: Any) -> tuple[Messenger, Callable] | None:
    wrapped = fn.func if isinstance(fn, _bound_partial) else fn
    if isinstance(wrapped, functools.partial) and wrapped.func is _context_wrap and len(wrapped.args) == 2:
        return wrapped.args[0], wrapped.args[1]
    return None


def net_parameter(name: str, parameter: nn.Parameter, owner: str | None = None) -> Tensor:
    """``pyro.param(name, parameter)`` of the BayesianModule ``owner``, without a weak reference at the parameter.

    What Pyro returns has a weak reference to the unconstrained tensor, and a net that holds one cannot be pickled. Here
    a view of the parameter has it. A reference that was there stays: that of a PyroModule around the net, whose
    ``pyro.module`` has put the parameter into a trace.
    """
    options: Any = {"constraint": constraints.real, "event_dim": None, "name": name, "infer": {"net_name": owner}}
    return _net_parameter(name, parameter, **options)


@effectful(type="param")
def _net_parameter(name: str, parameter: nn.Parameter, constraint: Any, event_dim: Any) -> Tensor:
    marked = "unconstrained" in vars(parameter)
    stored: Any = pyro.get_param_store().setdefault(name, parameter, constraint)
    view: Any = stored.view_as(stored)
    view.unconstrained = weakref.ref(stored.unconstrained())
    if not marked:
        vars(parameter).pop("unconstrained", None)
    return view


def parameters_are_seen() -> bool:
    """Whether a ``pyro.param`` would meet a handler that may use it: any but those that say that they do not."""
    for handler in _PYRO_STACK:
        if getattr(handler, "sees_parameters", True):
            return True
    return False


def parameters_met(trace: Any) -> dict[str, Any]:
    """The unconstrained tensor of every parameter in a trace.

    With ``module_local_params`` in ``pyro.settings``, a plain parameter of a module is its own unconstrained tensor.
    """
    values = {name: site["value"] for name, site in trace.nodes.items()}
    return {name: value.unconstrained() if hasattr(value, "unconstrained") else value for name, value in values.items()}


class Noted(Messenger):
    """Keeps in the trace what the model says of a weight, since a replayed site has the ``infer`` of the guide."""

    def __init__(self, infer: dict[str, Any]):
        super().__init__()
        self.infer = infer

    def _pyro_sample(self, msg: Any) -> None:
        msg.update(self.infer)


def node_of_trace(site: str, parameters: bool = False) -> Any:
    """What has a name in the trace that is being made; None without one. ``parameters``: in any trace of the stack."""
    for messenger in reversed(_PYRO_STACK):
        if isinstance(messenger, TraceMessenger) and (parameters or not messenger.param_only):
            node: Any = messenger.trace.nodes.get(site)
            if node is not None or not parameters:
                return node
    return None


class Prediction(Messenger):
    """Marks a run for prediction, whose log likelihood is not used: there a plate may have any size."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) and fn.subsample_size is not None and fn.subsample_size > fn.size:
            msg["value"] = torch.arange(fn.subsample_size)


def is_prediction() -> bool:
    """Whether the caller runs under :class:`Prediction`."""
    return any([isinstance(handler, Prediction) for handler in _PYRO_STACK])


def handlers_are_active() -> bool:
    """Whether the caller runs under effect handlers of its own, which a recording would not contain."""
    return bool(_PYRO_STACK)


_SCORING = {Trace.compute_log_prob.__code__, Trace.compute_score_parts.__code__, Trace.log_prob_sum.__code__}


def is_scoring() -> bool:
    """Whether Pyro is evaluating log_probs of a finished trace.

    Pyro's own ELBOs evaluate the log_prob of every site, weights too, also where the KL is analytic. That is no
    use of the weight by the model, but the arguments of both calls are the same.
    """
    return _runs_under(_SCORING)


_NO_STEPS = {
    predictive._predictive.__code__,
    AutoGuide._setup_prototype.__code__,
    ELBO._guess_max_plate_nesting.__code__,
}


def is_no_step() -> bool:
    """Whether Pyro runs the model to predict with it, or to see its sites."""
    return _runs_under(_NO_STEPS)


def _runs_under(codes: set) -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code in codes:
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
    """Like ``optim.set_state(states)``, but optimizers that exist already load their state at once."""
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
