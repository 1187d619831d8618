"""Weights that an operation without a rule draws once: one warning for all those of a net."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vd.weights.state import WeightState

Draws = list[tuple["WeightState", str]]  # weights, each with the operation that needed a draw

_NOTED: ContextVar[Draws | None] = ContextVar("_NOTED", default=None)


def note_draw(state: WeightState, operation: str) -> None:
    """Warn, once for a site and operation; within :func:`one_warning`, at its end."""
    if (state.site, operation) in state.warned:
        return
    state.warned.add((state.site, operation))
    noted = _NOTED.get()
    if noted is None:
        warnings.warn(_said([(state, operation)]), stacklevel=4)
    else:
        noted.append((state, operation))


@contextmanager
def one_warning() -> Iterator[None]:
    """Within it draws are noted; the outermost one warns of them all at its end."""
    if _NOTED.get() is not None:
        yield
        return
    noted: Draws = []
    token = _NOTED.set(noted)
    try:
        yield
    except BaseException:
        for state, operation in noted:
            state.warned.discard((state.site, operation))  # to be said by the run that succeeds
        raise
    finally:
        _NOTED.reset(token)
    if noted:
        warnings.warn(_said(noted), stacklevel=4)


def _said(draws: Draws) -> str:
    sites = list(dict.fromkeys(state.site for state, _ in draws))
    operations = ", ".join(dict.fromkeys(operation for _, operation in draws))
    one = len(sites) == 1
    return (
        f"{f'site {sites[0]!r}' if one else f'{len(sites)} sites'}: expected an operation with a rule for estimator "
        f"{draws[0][0].estimator!r}, got {operations}; {'the weight is' if one else 'each of these weights is'} drawn "
        f"once for this trace. Write shared_sites={sites} to ask for that, or strict=True to make it an error"
    )
