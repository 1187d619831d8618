"""What an interrupt within Pyro's handlers leaves open, closed: private corners of Pyro, as in ``_pyro.py``.

Tried with pyro-ppl 1.9.2. Sources: https://github.com/pyro-ppl/pyro,
``pyro/poutine/runtime.py`` (``_PYRO_STACK``, ``_DIM_ALLOCATOR``) and ``pyro/nn/module.py`` (``_Context``).
``tests/pyro_seam/test_left_open.py`` has one test for each, which names what broke.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from pyro.nn import PyroModule, pyro_method
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

_CALLS = (PyroModule.__call__.__code__, pyro_method(lambda self: None).__code__)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """A context after which Pyro's handlers, plates and modules are as before, also where an interrupt cuts off an end.

    A plate that stays open makes every later run an error. A call of a ``PyroModule`` that does gives every later run
    its values, and gradients that torch no longer records give a training that changes nothing.
    """
    stacks: Any = (_PYRO_STACK, _DIM_ALLOCATOR._stack)
    before = [list(stack) for stack in stacks]
    records_gradients, context = torch.is_grad_enabled(), copy_context()
    try:
        yield
    except BaseException as error:
        _end_calls(error)
        for variable in copy_context():  # of this library's own handlers, among others
            with suppress(LookupError):  # it had no value
                variable.set(context.run(variable.get))
        raise
    finally:
        torch.set_grad_enabled(records_gradients)
        for stack, entries in zip(stacks, before, strict=True):
            stack[:] = entries


def _end_calls(error: BaseException) -> None:
    """End the calls of modules that ``error`` has left."""
    running = [frame.f_locals["self"]._pyro_context for frame in _stack() if _is_call(frame)]
    for frame, _ in walk_tb(error.__traceback__):
        if _is_call(frame):
            context = frame.f_locals["self"]._pyro_context
            context.active = sum(context is other for other in running)
            if not context.active:
                context.cache.clear()


def _is_call(frame: FrameType) -> bool:
    return any(frame.f_code is code for code in _CALLS)  # code that torch.compile has made may have no hash


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
