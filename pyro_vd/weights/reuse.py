"""A weight used twice in one run of a model: all sites concerned, in one error.

Two uses of one weight share its noise. Under local sampling each would get noise of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

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


class all_reuses:
    """Within it every second use is noted; the outermost one raises a single error for them all at its end.

    Raises:
        WeightsUsedTwice: also where the run has failed after a second use.
    """

    _token: Token | None = None

    def __enter__(self) -> None:
        if _NOTED.get() is None:
            self._token = _NOTED.set([])

    def __exit__(self, kind: Any, error: BaseException | None, *_: Any) -> None:
        if self._token is None:
            return
        noted = _NOTED.get()
        _NOTED.reset(self._token)
        if noted and (error is None or isinstance(error, Exception)):
            raise _used_twice(noted) from error
