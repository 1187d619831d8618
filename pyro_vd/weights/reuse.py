"""A weight used twice in one run of a model: all sites concerned, in one error.

Two uses of one weight share its noise. Under local sampling each would get noise of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vd.weights.state import WeightState

Uses = list[tuple["WeightState", str]]  # the weights, and the operation of their second use

_NOTED: ContextVar[Uses | None] = ContextVar("_NOTED", default=None)


class WeightsUsedTwice(ValueError):
    """Weights that a run of a model uses twice under a local estimator.

    Args:
        message: what Pyro adds the shapes of a trace to, in an exception of the same type.
        states: the weights.
    """

    def __init__(self, message: str, states: Sequence[WeightState] = ()):
        super().__init__(message)
        self.states = states


def note_reuse(state: WeightState, operation: str) -> None:
    """Raise for a second use of a weight; within :func:`all_reuses`, at its end."""
    noted = _NOTED.get()
    if noted is None:
        raise _used_twice([(state, operation)])
    noted.append((state, operation))


def _used_twice(uses: Uses) -> WeightsUsedTwice:
    states = [state for state, _ in uses]
    sites = sorted({state.site for state in states})
    operations = ", ".join(dict.fromkeys(operation for _, operation in uses))
    named = f"site {sites[0]!r}" if len(sites) == 1 else f"sites {', '.join(map(repr, sites))}"
    one, them = ("the weight", "this weight") if len(sites) == 1 else ("each weight", "these weights")
    return WeightsUsedTwice(
        f"{named}: expected one use of {one} in a trace under estimator {states[0].estimator!r}, got a second one in "
        f"{operations}: two uses of one weight share their noise, but each would be sampled with noise of its own. "
        f'Write shared_sites={sites} to draw {them} once a step, shared_sites="auto" to have such weights found, or '
        'reuse="independent" to accept independent noise',
        states,
    )


@contextmanager
def all_reuses() -> Iterator[None]:
    """Within it every second use is noted; the outermost one raises a single error for them all at its end.

    Raises:
        WeightsUsedTwice: also where the run has failed after a second use.
    """
    if _NOTED.get() is not None:
        yield
        return
    noted: Uses = []
    token = _NOTED.set(noted)
    try:
        yield
    except Exception as error:
        if noted:
            raise _used_twice(noted) from error
        raise
    finally:
        _NOTED.reset(token)
    if noted:
        raise _used_twice(noted)
