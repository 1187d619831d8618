"""What has happened to one random weight in one trace, and what to do with weights that are used twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyro_vd.numpyro.weights.views import Region

T = TypeVar("T")


@dataclass(eq=False)
class WeightState:
    """What has happened to one random weight in one trace; shared by all its views.

    Attributes:
        site: the name of the sample site.
        estimator: "local", "per_example" or "flipout".
        reuse: "error"; "independent" to let a second use draw noise of its own; "shared" to draw a weight that is
            used twice once instead.
        strict: raise where an operation has no rule.
        warned: (site, operation) pairs already warned of, kept over traces by the handler.
        used: every use of its elements with noise of their own, or of its draw: operation and region.
        drawn: whether the weight is a draw for the rest of the trace.
        counting: whether second uses are noted in ``second_uses``, for the decision of :func:`run_counted` at the end.
        second_uses: the operations that used elements that had been used before.
    """

    site: str
    estimator: str = "local"
    reuse: str = "error"
    strict: bool = False
    warned: set[tuple[str, str]] = field(default_factory=set)
    used: list[tuple[str, Region]] = field(default_factory=list)
    drawn: bool = False
    counting: bool = False
    second_uses: list[str] = field(default_factory=list)

    def claim(self, region: Region, operation: str) -> None:
        """Note a use of the elements in ``region`` with noise of its own; error where they had one already."""
        if self.reuse != "independent" and any(region.overlaps(other) for _, other in self.used):
            self.second_uses.append(operation)
            if not self.counting:
                raise ValueError(_used_twice([self]))
        self.used.append((operation, region))

    def forget(self) -> None:
        """As before its first use."""
        self.used, self.second_uses, self.drawn = [], [], False


def run_counted(run: Callable[[Mapping[str, Any]], T], weights: Mapping[str, Any]) -> T:
    """``run(weights)``, with one decision at its end about all weights that it used twice.

    Those that may be drawn once (``reuse="shared"``) are, and it runs again with their draws; the same keys give the
    same noise to all others. If a run is part of another counted one, the outer one decides.

    Args:
        run: what uses the weights.
        weights: random weights by name, among other values.

    Raises:
        ValueError: weights used twice under ``reuse="error"``; it names them all.
    """
    states = {name: w.state for name, w in weights.items() if isinstance(getattr(w, "state", None), WeightState)}
    counted = {name: state for name, state in states.items() if not state.counting}
    if not counted:
        return run(weights)
    if any(state.used for state in counted.values()):  # used by an earlier run, which cannot be repeated
        return run(weights)
    for state in counted.values():
        state.counting = True
    try:
        result = run(weights)
    finally:
        for state in counted.values():
            state.counting = False
    repeated = {name: state for name, state in counted.items() if state.second_uses}
    if not repeated:
        return result
    refused = [state for state in repeated.values() if state.reuse == "error"]
    if refused:
        raise ValueError(_used_twice(refused))
    _say_shared(list(repeated.values()))
    for state in counted.values():
        state.forget()
    return run_counted(run, {n: w.materialize() if n in repeated else w for n, w in weights.items()})


def _used_twice(states: list[WeightState]) -> str:
    sites = [state.site for state in states]
    operations = list(dict.fromkeys(operation for state in states for operation in state.second_uses))
    one = len(sites) == 1
    way_out = (
        f"Write shared_sites={sites!r} to draw {'this weight' if one else 'these weights'} once a step"
        + ("" if states[0].reuse == "shared" else ', shared_sites="auto" to draw all that are used twice once')
        + ', or reuse="independent" to accept independent noise'
    )
    return (
        f"{'site' if one else 'sites'} {', '.join(map(repr, sites))}: expected one use of {'the' if one else 'each'} "
        f"weight in a trace under estimator {states[0].estimator!r}, got a second one in {', '.join(operations)}: two "
        f"uses of one weight share their noise, but each would be sampled with noise of its own. {way_out}"
    )


def _say_shared(states: list[WeightState]) -> None:
    sites = [state.site for state in states]
    new = [state for state in states if (state.site, "used twice") not in state.warned]
    for state in new:
        state.warned.add((state.site, "used twice"))
    if new:
        warnings.warn(
            f"the weights {sites} are used twice, and are drawn once a step; all others keep noise of their own for "
            f"every output. Write shared_sites={sites} to say so without this warning",
            stacklevel=4,
        )
