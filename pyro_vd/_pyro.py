"""The private corners of Pyro: its parameter store's tables, its handler stack, and what evaluates a trace.

Tried with the versions of Pyro that ``constraints.txt`` names. Sources: https://github.com/pyro-ppl/pyro,
``pyro/params/param_store.py`` (``_params``), ``pyro/poutine/runtime.py`` (``_PYRO_STACK``),
``pyro/poutine/trace_struct.py`` and ``pyro/infer/trace_mean_field_elbo.py``. ``tests/pyro_seam/test_pyro_corners.py``
has one test for each, which names what broke.
"""

from __future__ import annotations

import sys

import pyro
import torch
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement as check_mean_field_requirement  # noqa: F401
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_struct import Trace
from torch import nn


def adopt_stored_value(name: str, parameter: nn.Parameter) -> None:
    """Where Pyro's store has a tensor of its own under ``name``, copy its value and put ``parameter`` in its place.

    The store has the last word, as for any Pyro module: it may hold a loaded checkpoint. But the
    tensor stays that of the module, so that an optimizer over its parameters trains what the model uses.

    Raises:
        ValueError: the store's tensor has another shape.
    """
    store = pyro.get_param_store()
    stored = store._params.get(name)
    if stored is None or stored is parameter:
        return
    if stored.shape != parameter.shape:
        raise ValueError(
            f"parameter {name!r}: expected shape {tuple(parameter.shape)}, got {tuple(stored.shape)} in Pyro's "
            "parameter store, from another model of that name; write pyro.clear_param_store() or another name="
        )
    with torch.no_grad():
        parameter.copy_(stored)
    store[name] = parameter


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
