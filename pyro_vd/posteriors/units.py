"""Weights whose noise is shared by a whole unit, ``W = s * theta`` with one s per unit of the weight.

The distribution is over the whole weight, as its elements are not independent: it is an event of the shape of
``loc``, without ``to_event``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributions import Independent, constraints

from pyro_vd.common.options import NoDensity, check_count
from pyro_vd.common.shapes import check_one_weight, sample_shape_of
from pyro_vd.estimators import WeightNoise
from pyro_vd.posteriors.base import WeightPosterior, as_tensor, check_tensor


class UnitPosterior(WeightPosterior):
    """Abstract: ``W = s * (theta + sqrt(variance of theta) * e)``, s of mean 1 or another, one per unit.

    Attributes:
        loc: mean of the weight.
        unit_dim: the dimension of the weight along which its units lie; 1 are the input units of Linear and ConvNd
            weights, 0 their output units.
    """

    estimators = ("local", "shared", "per_example")
    unit_dim: int

    def __init__(self, loc: Tensor, unit_dim: int, validate_args: bool | None = None):
        check_tensor(type(self).__name__, self.arguments[0], loc)
        unit_dim = check_count("unit_dim", unit_dim, owner=type(self).__name__)
        if not -loc.dim() <= unit_dim < loc.dim():
            raise ValueError(
                f"{type(self).__name__}: expected a weight with dimension {unit_dim} for its units, got loc of shape "
                f"{tuple(loc.shape)}; give unit_dim, or use DropoutNormal, whose noise needs no units"
            )
        self.loc = loc
        self.unit_dim = unit_dim % loc.dim()
        super().__init__(torch.Size(), loc.shape)

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[torch.Size, torch.Size]:
        """Batch and event shape of a distribution with arguments of these shapes."""
        return torch.Size(), torch.Size(arg_shapes[cls.arguments[0]])

    @property
    def units(self) -> int:
        """Number of units."""
        return self.loc.shape[self.unit_dim]

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.loc.dim())

    @abstractmethod
    def kl_to(self, prior: Independent, free: Tensor | None = None) -> Tensor:
        """KL to the prior of the whole weight, of the elements where ``free`` is True, or of all; nats, 0-dim."""

    def sum_over_units(self, values: Tensor, free: Tensor | None) -> Tensor:
        """The sum of one value per unit, or one for all, over the units that have a free element."""
        values = values.expand(self.units)
        if free is None:
            return values.sum()
        return torch.where(free.movedim(self.unit_dim, 0).flatten(1).any(1), values, 0.0).sum()

    @abstractmethod
    def draw_units(self, sample_shape: torch.Size) -> Tensor:
        """Draws of s, shape ``sample_shape + (units,)``."""

    def noise(self) -> WeightNoise:
        return WeightNoise(self.loc, None, self.rsample, self.unit_dim, self.draw_units)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.along_units(self.draw_units(torch.Size(sample_shape_of(self, sample_shape)))) * self.loc

    def along_units(self, values: Tensor) -> Tensor:
        """Values of shape ``(..., units)`` or ``(..., 1)``, shaped to broadcast with the weight."""
        return values.reshape(*values.shape[:-1], *self._unit_shape(values.shape[-1]))

    def _unit_shape(self, units: int) -> tuple[int, ...]:
        """The shape of the weight with 1 in place of every dimension but that of the units."""
        return (*(1,) * self.unit_dim, units, *(1,) * (self.loc.dim() - self.unit_dim - 1))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UnitPosterior:
        check_one_weight(self, batch_shape)
        return self

    def log_prob(self, value: Tensor) -> NoReturn:
        raise NoDensity(
            f"{type(self).__name__}: expected a use of its analytic KL, got a use of log_prob: the weight lies on a "
            "surface of fewer dimensions than it has elements and has no density; choose a prior with a KL rule "
            "(ImproperLogUniform or Normal), or DropoutNormal"
        )


def unit_values(posterior: UnitPosterior, name: str, value: Any) -> Tensor:
    """One value for each unit, shape ``(units,)``, or one for all, shape ``(1,)``."""
    loc, units = posterior.loc, posterior.units
    value = as_tensor(type(posterior).__name__, name, value, loc)
    if value.dim() == 0:
        return value.to(loc).reshape(1)  # a scalar follows the weight that it is spread over
    if value.numel() == 1:
        return value.reshape(1)
    padded = (1,) * (loc.dim() - value.dim()) + tuple(value.shape)
    if tuple(value.shape) == (units,) or padded == posterior._unit_shape(units):
        return value.reshape(units)
    raise ValueError(
        f"{type(posterior).__name__}: expected {name} to be one number or of shape ({units},), one for each unit "
        f"along dimension {posterior.unit_dim} of loc of shape {tuple(loc.shape)}, got shape {tuple(value.shape)}"
    )
