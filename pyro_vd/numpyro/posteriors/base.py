"""What every distribution of a random weight has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from numpyro.distributions import Distribution, ExpandedDistribution, Independent, constraints
from numpyro.distributions.kl import kl_divergence

from pyro_vd.common.options import check_number, shown
from pyro_vd.common.shapes import sample_shape_of
from pyro_vd.numpyro.arguments import check_precision, is_number, require_key
from pyro_vd.numpyro.estimators import ESTIMATORS, WeightNoise, safe_sqrt


class WeightPosterior(Distribution):
    """Abstract: the distribution of a random weight.

    Subclasses have ``loc``, ``variance`` (elementwise, of the weight), ``log_alpha`` and ``noise()``.
    The values of arrays are validated at construction with ``validate_args=True`` alone, and where they are not traced;
    :class:`pyro_vd.numpyro.TraceVD_ELBO` reports NaN and infinity by site.

    Attributes:
        estimators: those under which the family has a form.
        arguments: names of the arrays among the arguments of the constructor; attributes too.
        options: names of its other arguments; attributes too.
    """

    pytree_data_fields = ("loc",)
    estimators: tuple[str, ...] = ESTIMATORS
    arguments: tuple[str, ...] = ("loc",)
    options: tuple[str, ...] = ()
    loc: Array

    def __init__(self, batch_shape: tuple[int, ...], event_shape: tuple[int, ...], validate_args: bool | None = None):
        super().__init__(batch_shape, event_shape, validate_args=False)
        self._validate(validate_args)

    def _validate(self, validate_args: bool | None) -> None:
        """Whether values are validated from here on; those of the parameters now."""
        if validate_args is None:
            vars(self).pop("_validate_args", None)  # NumPyro's setting at construction
            return
        self._validate_args = validate_args
        for name, value in self.given().items() if validate_args else ():
            bad = None if isinstance(value, Tracer) else int((~np.isfinite(np.asarray(value))).sum())
            if bad:
                raise ValueError(
                    f"{type(self).__name__}: expected {name} to be finite, got {bad} NaN or infinite of {value.size} "
                    f"values; write jnp.nan_to_num({name}), or find where they come from"
                )

    def given(self) -> dict[str, Array]:
        """The arrays that the distribution was made of, by the names of the constructor."""
        return {name: getattr(self, f"_{name}" if f"_{name}" in vars(self) else name) for name in self.arguments}

    def __repr__(self) -> str:
        shapes = [f"{name}: {jnp.shape(value)}" for name, value in self.given().items()]
        return f"{type(self).__name__}({', '.join([*shapes, *(f'{o}={getattr(self, o)!r}' for o in self.options)])})"

    @property
    @abstractmethod
    def log_alpha(self) -> Array:
        """Natural log of the noise ratio."""

    @abstractmethod
    def noise(self) -> WeightNoise:
        """The parts of the weight's randomness, for :mod:`pyro_vd.numpyro.estimators`."""

    @property
    def has_rsample(self) -> bool:
        return True

    @property
    def mean(self) -> Array:
        return self.loc

    @property
    def scale(self) -> Array:
        """Standard deviation of each weight."""
        return safe_sqrt(self.variance)

    @property
    def dropout_rate(self) -> Array:
        """Probability of dropping that gives the same noise ratio, ``alpha / (1 + alpha)``."""
        return jax.nn.sigmoid(self.log_alpha)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Whole weights, differentiable in the parameters."""
        return self.noise().draw(require_key(type(self).__name__, key), sample_shape_of(self, sample_shape))


def broadcast_parameters(owner: str, loc: Array, name: str, value: Any) -> tuple[Array, Array]:
    """``loc`` in the shape of both, and the parameter ``name`` as it came: one value may serve many weights.

    Raises an error that names ``owner`` where they are not floating point arrays that broadcast.
    """
    loc = as_location(owner, loc)
    value = as_array(owner, name, value, loc)
    try:
        shape = jnp.broadcast_shapes(loc.shape, value.shape)
    except ValueError:
        raise ValueError(
            f"{owner}: expected {name} to broadcast with loc of shape {loc.shape}, got shape {value.shape}; give "
            f"{name} the shape of loc, or size 1 where it is shared"
        ) from None
    return jnp.broadcast_to(loc, shape), value


def as_location(owner: str, loc: Any, name: str = "loc") -> Array:
    """A mean as an array, or TypeError unless it is a number or an array of floating point."""
    if is_number(loc):
        kind = getattr(loc, "dtype", None)
        kind = kind if kind is not None and jnp.issubdtype(kind, jnp.floating) else np.result_type(float)
        return jnp.asarray(check_number(name, loc, owner=owner), jax.dtypes.canonicalize_dtype(kind))
    check_precision(owner, name, loc)
    if not isinstance(loc, (jax.Array, np.ndarray)) or not jnp.issubdtype(loc.dtype, jnp.floating):
        got = loc.dtype if isinstance(loc, (jax.Array, np.ndarray)) else type(loc).__name__
        raise TypeError(f"{owner}: expected {name} to be a floating point array, got {got}; write {name}.astype(float)")
    return jnp.asarray(loc)


def as_array(owner: str, name: str, value: Any, like: Array | None = None) -> Array:
    """A parameter as an array of floating point, a number in the dtype of ``like``; no silent loss of float64."""
    dtype = jnp.result_type(float) if like is None else like.dtype
    if is_number(value):
        return jnp.asarray(check_number(name, value, owner=owner), dtype)
    given = value
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):  # rows of several lengths, values that are not known yet
            value = None
        value = value.astype(dtype) if value is not None and value.dtype.kind in "iuf" else value
    check_precision(owner, name, value)
    # NumPy would read None as NaN, and text as the number that it spells.
    if not isinstance(value, (jax.Array, np.ndarray)) or value.dtype.kind in "OUSb":
        raise TypeError(f"{owner}: expected {name} to be a number or an array, got {shown(given)}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{owner}: expected {name} to be floating point, got {value.dtype}; write {name}.astype(float)")
    return jnp.asarray(value)


def real_arguments(*names: str) -> dict[str, Any]:
    """The ``arg_constraints`` of parameters on the real line."""
    return dict.fromkeys(names, constraints.real)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def given_value(value: Array, why: str) -> Array:
    """The value; asking for a gradient in it is a ValueError that says ``why`` there is none."""
    return value


@partial(given_value.defjvp, symbolic_zeros=True)
def _given_value_jvp(why: str, primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    if not isinstance(tangents[0], SymbolicZero):
        raise ValueError(why)
    return primals[0], tangents[0]


def register_kl(q: type, p: type) -> Callable[[Any], Any]:
    """A decorator that makes a function the ``kl_divergence`` of NumPyro for a pair of distributions."""
    dispatcher: Any = kl_divergence  # typed like the first of its rules
    return dispatcher.register(q, p)


def prior_of_weight(q: WeightPosterior, p: Independent, *known: type) -> Any:
    """The prior of the elements of a weight whose posterior is one event, for its KL rule.

    Raises ValueError where it is none of the ``known`` types, or does not cover the whole weight.
    """
    prior = p.base_dist.base_dist if isinstance(p.base_dist, ExpandedDistribution) else p.base_dist
    whole = p.reinterpreted_batch_ndims == len(q.event_shape)
    if whole and isinstance(prior, known):
        return prior
    names = " or ".join(one.__name__ for one in known)
    extent = "" if whole else f" with .to_event({p.reinterpreted_batch_ndims})"
    raise ValueError(
        f"expected a prior with a KL rule for {type(q).__name__}, {names} with .to_event({len(q.event_shape)}), got "
        f"{type(prior).__name__}{extent}; change the prior of the model, or the guide"
    )
