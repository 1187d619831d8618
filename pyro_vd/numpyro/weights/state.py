"""What has happened to one random weight in one trace."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_vd.numpyro.weights.views import Region


@dataclass(eq=False)
class WeightState:
    """What has happened to one random weight in one trace; shared by all its views.

    Attributes:
        site: the name of the sample site.
        estimator: "local", "per_example" or "flipout".
        reuse: "error", or "independent" to let a second use draw noise of its own.
        strict: raise where an operation has no rule.
        warned: (site, operation) pairs already warned of, kept over traces by the handler.
        used: the parts of the weight that were used with noise of their own.
        drawn: whether the weight is a draw for the rest of the trace.
    """

    site: str
    estimator: str = "local"
    reuse: str = "error"
    strict: bool = False
    warned: set[tuple[str, str]] = field(default_factory=set)
    used: list[Region] = field(default_factory=list)
    drawn: bool = False

    def claim(self, region: Region, operation: str) -> None:
        """Note a use of the elements in ``region`` with noise of its own; error where they had one already."""
        if self.reuse == "error" and any(region.overlaps(other) for other in self.used):
            raise ValueError(
                f"site {self.site!r}: expected one use of the weight in a trace under estimator {self.estimator!r}, "
                f"got a second one in {operation}: two uses of one weight share their noise, but each would be "
                f"sampled with noise of its own. Write shared_sites=[{self.site!r}] to draw this weight "
                'once a step, or reuse="independent" to accept independent noise'
            )
        self.used.append(region)
