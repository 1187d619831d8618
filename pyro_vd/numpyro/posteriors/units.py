"""Weights whose noise is shared by a whole unit, ``W = s * theta`` with one s per unit of the weight.

The distribution is over the whole weight, as its elements are not independent: it is an event of the shape of
``loc``, without ``to_event``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

from jax import Array
from jax.tree_util import Partial
from numpyro.distributions import constraints

from pyro_vd.common.options import NoDensity, check_count
from pyro_vd.common.shapes import check_one_weight
from pyro_vd.numpyro.estimators import WeightNoise
from pyro_vd.numpyro.posteriors.base import WeightPosterior, as_array, as_location


class UnitPosterior(WeightPosterior):
    """Abstract: ``W = s * (theta + sqrt(variance of theta) * e)``, s of mean 1 or another, one per unit.

    Attributes:
        loc: mean of the weight.
        unit_dim: the dimension of the weight along which its units lie; 1 are the input units of Linear and ConvNd
            weights in the layout of PyTorch and Equinox, 0 those of Flax's Dense kernels.
    """

    estimators = ("local", "shared", "per_example")
    pytree_aux_fields = ("unit_dim",)
    unit_dim: int

    def __init__(self, loc: Array, unit_dim: int, validate_args: bool | None = None):
        loc = as_location(type(self).__name__, loc, self.arguments[0])
        unit_dim = check_count("unit_dim", unit_dim, owner=type(self).__name__)
        if not -loc.ndim <= unit_dim < loc.ndim:
            raise ValueError(
                f"{type(self).__name__}: expected a weight with dimension {unit_dim} for its units, got loc of shape "
                f"{loc.shape}; give unit_dim, or use DropoutNormal, whose noise needs no units"
            )
        self.loc = loc
        self.unit_dim = unit_dim % loc.ndim
        super().__init__((), loc.shape)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Batch and event shape of a distribution with arguments of these shapes."""
        return (), tuple(args[0] if args else kwargs[cls.arguments[0]])

    @property
    def units(self) -> int:
        """Number of units."""
        return self.loc.shape[self.unit_dim]

    @constraints.dependent_property(is_discrete=False)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @abstractmethod
    def draw_units(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        """Draws of s, shape ``sample_shape + (units,)``."""

    def noise(self) -> WeightNoise:
        return WeightNoise(self.loc, None, self.unit_dim, Partial(type(self).draw_units, self))

    def along_units(self, values: Array) -> Array:
        """Values of shape ``(..., units)`` or ``(..., 1)``, shaped to broadcast with the weight."""
        return values.reshape(*values.shape[:-1], *self._unit_shape(values.shape[-1]))

    def _unit_shape(self, units: int) -> tuple[int, ...]:
        """The shape of the weight with 1 in place of every dimension but that of the units."""
        return (*(1,) * self.unit_dim, units, *(1,) * (self.loc.ndim - self.unit_dim - 1))

    def expand(self, batch_shape: Sequence[int]) -> UnitPosterior:
        check_one_weight(self, batch_shape)
        return self

    def log_prob(self, value: Array) -> NoReturn:
        raise NoDensity(
            f"{type(self).__name__}: expected a use of its analytic KL, got a use of log_prob: the weight lies on a "
            "surface of fewer dimensions than it has elements and has no density; choose a prior with a KL rule "
            "(ImproperLogUniform or Normal), or DropoutNormal"
        )


def unit_values(posterior: UnitPosterior, name: str, value: Any) -> Array:
    """One value for each unit, shape ``(units,)``, or one for all, shape ``(1,)``."""
    loc, units = posterior.loc, posterior.units
    value = as_array(type(posterior).__name__, name, value, loc)
    if value.size == 1:
        return value.reshape(1)
    padded = (1,) * (loc.ndim - value.ndim) + tuple(value.shape)
    if tuple(value.shape) == (units,) or padded == posterior._unit_shape(units):
        return value.reshape(units)
    raise ValueError(
        f"{type(posterior).__name__}: expected {name} to be one number or of shape ({units},), one for each unit "
        f"along dimension {posterior.unit_dim} of loc of shape {loc.shape}, got shape {value.shape}"
    )
