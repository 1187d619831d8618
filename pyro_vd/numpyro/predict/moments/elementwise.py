"""Moments of a Gaussian through functions of one element, in closed form or by quadrature.

Closed forms: the maximum and minimum with a constant (ReLU), abs, square, exp. All else by the trapezoidal rule
at 113 places of -7..7 standard deviations. Largest error of mean or standard deviation, in standard deviations of the
input, against 20,001 places over means of -5..5: up to a standard deviation of 3 it is 1e-5 for tanh, sigmoid, SiLU,
GELU, softplus, at 10 it is 1e-3; for functions with a kink (leaky ReLU, ELU) 1e-3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import ndtr
from jax.tree_util import Partial

from pyro_vd.numpyro.estimators import safe_sqrt
from pyro_vd.numpyro.predict.moments.gaussian import GaussianArray, rule

_PLACES = np.arange(-56, 57) / 8
_WEIGHTS = np.exp(-0.5 * _PLACES**2) / np.exp(-0.5 * _PLACES**2).sum()

# Functions of one element, that a rule takes by quadrature where they stand alone.
SMOOTH = (
    lax.tanh_p, lax.logistic_p, lax.erf_p, lax.sin_p, lax.cos_p, lax.atan_p, lax.log1p_p, lax.expm1_p, lax.cosh_p,
    lax.sinh_p, lax.asinh_p, lax.erfc_p,
)  # fmt: skip
_OF_THE_REAL_LINE = tuple(p for p in SMOOTH if p is not lax.log1p_p)  # log1p has no value below -1


def at_least_zero(variance: Array) -> Array:
    """``max(variance, 0)``, with the gradient of ``variance``: what is below 0 is so by rounding."""
    return jnp.where(variance < 0, variance - lax.stop_gradient(variance), variance)  # NaN stays NaN


def quadrature(function: Callable[[Array], Array], mean: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and variance of a function of each element of a Gaussian."""
    deviation, centre = safe_sqrt(variance), function(mean)

    def add(sums: tuple[Array, Array], place: tuple[Array, Array]) -> tuple[Any, None]:
        value = function(mean + place[0] * deviation) - centre  # small numbers: no cancellation below
        return (sums[0] + place[1] * value, sums[1] + place[1] * jnp.square(value)), None

    zero = jnp.zeros_like(centre)
    places = jnp.asarray(_PLACES, centre.dtype), jnp.asarray(_WEIGHTS, centre.dtype)
    (first, square), _ = lax.scan(add, (zero, zero), places)
    return centre + first, at_least_zero(square - jnp.square(first))


def through(
    x: GaussianArray,
    function: Callable[[Array], Array],
    closed: Callable[[Array, Array], tuple[Array, Array]] | None = None,
) -> GaussianArray:
    """The moments of ``function(x)``, computed from the source of x where x is an elementwise function of it.

    Args:
        x: a Gaussian, or a function of one.
        function: of each element.
        closed: mean and variance of a Gaussian -> those of the function.
    """
    if x.elementwise and not x.gaussian:
        return x.function(*quadrature(x.then(function), *x.source), function)
    moments = functools.partial(quadrature, function) if closed is None else closed
    return x.function(*moments(x.mean_value, x.variance), function)


def together(primitive: Any, operands: Sequence[Any]) -> GaussianArray | None:
    """The moments of a primitive of two functions of one and the same Gaussian; None of others."""
    if not all(isinstance(one, GaussianArray) and one.elementwise for one in operands):
        return None
    first, second = operands
    if any(a is not b for a, b in zip(first.source, second.source, strict=True)):
        return None
    left, right = (one.view or Partial(_as_it_is) for one in operands)
    mean, variance = first.source
    source = GaussianArray(mean, variance, first.of, root=first.root, path=first.path)
    function = Partial(functools.partial(_of_both, primitive), left, right)
    affine = primitive in (lax.add_p, lax.sub_p) and first.gaussian and second.gaussian
    return source.function(*quadrature(function, mean, variance), function, affine=affine)


def _as_it_is(value: Array) -> Array:
    return value


def _of_both(primitive: Any, left: Callable, right: Callable, value: Array) -> Array:
    return operation_of(primitive)(left(value), right(value))


def operation_of(primitive: Any) -> Callable[[Array, Array], Array]:
    """The function of ``jax.lax``, which binds a primitive with the parameters that its gradient needs: ``lax.mul``."""
    return getattr(lax, primitive.name)


def _enter(primitive: Any) -> None:
    @rule(primitive)
    def smooth(operands: Sequence[Any], params: dict[str, Any]) -> Any:
        return through(operands[0], lambda value: primitive.bind(value, **params))


for _primitive in _OF_THE_REAL_LINE:
    _enter(_primitive)


def _absolute(m: Array, v: Array) -> tuple[Array, Array]:
    deviation = safe_sqrt(v)
    a = m / jnp.maximum(deviation, jnp.finfo(m.dtype).tiny)
    mean = m * (2 * ndtr(a) - 1) + 2 * deviation * jnp.exp(-0.5 * jnp.square(a)) / math.sqrt(2 * math.pi)
    return mean, at_least_zero(jnp.square(m) + v - jnp.square(mean))


@rule(lax.abs_p)
def absolute(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """``|x|``: its mean in closed form, its square that of x."""
    return through(operands[0], jnp.abs, _absolute)


@rule(lax.square_p)
def square(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """``m**2 + v``, and variance ``2 * v**2 + 4 * m**2 * v``."""
    return through(operands[0], jnp.square, lambda m, v: (m**2 + v, 2 * v**2 + 4 * m**2 * v))


@rule(lax.integer_pow_p)
def power(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """A positive power; the square in closed form."""
    exponent = params["y"]
    if exponent == 2:
        return square(operands, {})
    return through(operands[0], lambda value: value**exponent) if exponent > 0 else NotImplemented


@rule(lax.exp_p)
def exponential(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """The lognormal: ``exp(m + v / 2)``, and variance ``(exp(v) - 1) * exp(2 * m + v)``."""
    return through(operands[0], jnp.exp, lambda m, v: (jnp.exp(m + v / 2), jnp.expm1(v) * jnp.exp(2 * m + v)))


@rule(lax.clamp_p)
def clamp(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Between two constants, by quadrature."""
    low, x, high = operands
    if not isinstance(x, GaussianArray) or isinstance(low, GaussianArray) or isinstance(high, GaussianArray):
        return NotImplemented
    return through(x, Partial(_between, low, high))


def _between(low: Array, high: Array, value: Array) -> Array:
    return lax.clamp(low, value, high)
