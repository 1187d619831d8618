"""What the mean of a weight started from, until its model has run: a net that has other values then is followed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vd._torch import has_values


@dataclass(frozen=True)
class Start:
    """A net's parameter, and the mean of its weight, as they were when a guide was made.

    They are compared by their values: whoever writes to ``.data`` changes no version of a tensor, and loading with
    ``assign=True``, or shards of FSDP2, put another tensor in its place.

    Attributes:
        device, dtype: of the parameter.
        values: of the parameter and of the mean; None where the mean has been given values, which stay.
        version: of the mean, where there are no values to compare, as on the meta device.
    """

    device: torch.device
    dtype: torch.dtype
    values: tuple[Tensor, Tensor] | None
    version: int

    @staticmethod
    def of(parameter: Tensor, loc: Tensor, site: str) -> Start:
        check_trainable(parameter, site)
        start = loc.detach().clone()
        same = not start.is_meta and torch.equal(start, parameter)
        return Start(
            parameter.device, parameter.dtype, (start if same else parameter.detach().clone(), start), loc._version
        )

    def given(self) -> Start:
        """The start of a mean that has been given values."""
        return replace(self, values=None)

    def is_followed(self, parameter: Tensor, loc: Tensor) -> bool:
        """Whether the net has other values than at the start, and the mean has not."""
        if self.values is None:
            return False
        before, start = self.values
        if start.is_meta or not has_values():
            return loc._version == self.version
        return not _equal(parameter, before) and _equal(loc, start)


def check_trainable(parameter: Tensor, site: str) -> None:
    """Raise for a net's parameter that cannot be trained."""
    if parameter.is_inference():
        raise ValueError(
            f"site {site!r}: expected a parameter that can be trained, got one that was made within "
            "torch.inference_mode(); make the net outside of it"
        )


def _equal(now: Tensor, before: Tensor) -> bool:
    """Whether a tensor has the values that it had before it was moved to another device or type."""
    return torch.equal(now.detach(), before.to(now.device, now.dtype))
