"""What has happened to one random weight in one trace, and which of its elements a view of it holds.

Two views of a weight may be used under local sampling where they share no element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vd._torch import (
    current_noise,
    in_backward_pass,
    in_checkpointed_region,
    is_repeated_with_other_noise,
    plain,
    share_storage,
)
from pyro_vd.estimators import WeightNoise
from pyro_vd.weights.reuse import note_reuse

Region = tuple[tuple[int, ...], tuple[int, ...], int]  # size, stride, storage offset


@dataclass
class WeightState:
    """What has happened to one random weight in one trace; shared by all its views.

    Attributes:
        site: the name of the sample site.
        noise: of the whole weight; a view has a noise of its own.
        estimator: "local", "per_example" or "flipout".
        reuse: "error", "independent" to let a second use draw noise of its own, or "shared" to have the weight drawn
            once where a run turns out to use it twice.
        strict: raise where an operation has no rule.
        warned: (site, operation) pairs already warned of, kept over traces by the handler.
        is_scoring: whether a log_prob of the trace is being evaluated right now.
        with_gradient: whether gradients were enabled when the weight was made.
        used: every use of its elements with noise of their own, or of its draw: operation and region.
        shared_sites: where the names of such weights are kept over traces, by the handler.
        coherent: whether what is made of the weight must have the joint distribution that one draw of it gives: then
            an operation samples its output only where every element of the weight enters one output element.
        draw: the coherent draw of the trace, None while no operation has asked for one.
        scored_draw: the draw at which its log_prob is evaluated.
    """

    site: str
    noise: WeightNoise
    estimator: str = "local"
    reuse: str = "error"
    strict: bool = False
    warned: set[tuple[str, str]] = field(default_factory=set)
    is_scoring: Callable[[], bool] = lambda: False
    with_gradient: bool = field(default_factory=torch.is_grad_enabled)
    used: list[tuple[str, Region | None]] = field(default_factory=list)
    shared_sites: set[str] = field(default_factory=set)
    coherent: bool = False
    draw: Tensor | None = None
    scored_draw: Tensor | None = None
    _noise_of_draw: Tensor | None = None

    def claim(self, region: Region | None, operation: str) -> None:
        """Note a use of the elements in ``region`` with noise of its own; error where they had one already."""
        if in_backward_pass():  # activation checkpointing repeats a use
            if is_repeated_with_other_noise():
                raise ValueError(
                    f"site {self.site!r}: expected activation checkpointing that repeats its noise, got {operation} in "
                    "one with preserve_rng_state=False; leave that argument out, or write "
                    f"shared_sites=[{self.site!r}]"
                )
            return
        if self.with_gradient and self.noise.loc.requires_grad and not torch.is_grad_enabled():
            raise ValueError(
                f"site {self.site!r}: expected a use with gradients enabled, as when the weight was made, got "
                f"{operation} inside torch.no_grad or a custom autograd function, where the gradient of the weight "
                f"would be lost; write weight.materialize() before it, shared_sites=[{self.site!r}], or, in activation "
                "checkpointing, torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        if self.used and self.reuse != "independent" and any(overlap(region, other) for _, other in self.used):
            note_reuse(self, operation)
        self.used.append((operation, region))

    def drawn(self, region: Region | None, operation: str) -> Tensor:
        """The coherent draw of the trace, for an operation on the elements in ``region``."""
        if self.draw is None:
            self.claim(region, operation)
            if in_checkpointed_region():
                self._noise_of_draw = current_noise(self.noise.loc)
            self.draw = self.noise.draw(torch.Size())
        elif self._noise_of_draw is not None and in_backward_pass():
            self.claim(region, operation)
            if torch.equal(current_noise(self.noise.loc), self._noise_of_draw):
                return self.noise.draw(torch.Size())  # it repeats the draw, so that what follows has the same noise
        return self.draw


def region_of(view: Tensor, whole: Tensor, origin: Region | None) -> Region | None:
    """The elements of ``whole`` in ``view``; a copy holds as much as its ``origin``. None is all of them."""
    view, whole = plain(view), plain(whole)
    if share_storage(view, whole):
        return tuple(view.shape), tuple(view.stride()), int(view.storage_offset())
    return origin


def overlap(first: Region | None, second: Region | None) -> bool:
    """Whether two views hold a common element of the weight; None is all of it."""
    if first is None or second is None:
        return True
    (start, end), (other_start, other_end) = _bounds(first), _bounds(second)
    if end < other_start or other_end < start:
        return False
    return not _elements(first).isdisjoint(_elements(second))


def _bounds(region: Region) -> tuple[int, int]:
    size, stride, offset = region
    return offset, offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))


def _elements(region: Region) -> set[int]:
    size, stride, offset = region
    elements = {offset}
    for length, step in zip(size, stride, strict=True):
        elements = {element + index * step for element in elements for index in range(length)}
    return elements
