"""Moments of sums, products, selections, averages and maxima of independent Gaussians."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import ndtr
from jax.tree_util import Partial

from pyro_vd.numpyro.predict.moments.elementwise import at_least_zero, operation_of, through, together
from pyro_vd.numpyro.predict.moments.gaussian import GaussianArray, UnknownOperation, first_of, moments_of, rule
from pyro_vd.numpyro.predict.moments.ranges import is_without_zero
from pyro_vd.numpyro.weights.views import SHAPE_VIEWS


def _shifted(operands: Sequence[Any], primitive: Any, mean: Array, variance: Any) -> GaussianArray:
    """A sum or product of a Gaussian and a constant; one of the Gaussian's shape is drawn as a function of it."""
    place = next(i for i, one in enumerate(operands) if isinstance(one, GaussianArray))
    x, other = operands[place], operands[1 - place]
    if mean.shape != x.shape:
        return x.like(mean, variance, x.weight)
    function = Partial(functools.partial(_with_constant, primitive, place), other)
    if x.weight:
        return x.viewed(function, lambda _: variance)
    return x.function(mean, variance, function, affine=True)


def _with_constant(primitive: Any, place: int, other: Any, value: Array) -> Array:
    return operation_of(primitive)(*((value, other) if place == 0 else (other, value)))


def _enter_sum(primitive: Any) -> None:
    @rule(primitive)
    def total(operands: Sequence[Any], params: dict[str, Any]) -> Any:
        """Means add up, and so do variances: the covariance of two branches of a net is dropped."""
        known = together(primitive, operands)
        if known is not None:
            return known
        (m, v), (n, w) = map(moments_of, operands)
        mean = operation_of(primitive)(m, n)
        if all(isinstance(one, GaussianArray) for one in operands):
            return operands[0].like(mean, v + w)
        return _shifted(operands, primitive, mean, v + w)


_enter_sum(lax.add_p)
_enter_sum(lax.sub_p)


@rule(lax.mul_p)
def multiply(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """``m * n``, and variance ``v * w + m**2 * w + n**2 * v``."""
    known = together(lax.mul_p, operands)
    if known is not None:
        return known
    (m, v), (n, w) = map(moments_of, operands)
    mean, variance = m * n, v * w + jnp.square(m) * w + jnp.square(n) * v
    if all(isinstance(one, GaussianArray) for one in operands):
        return operands[0].like(mean, variance)
    return _shifted(operands, lax.mul_p, mean, variance)


@rule(lax.div_p)
def divide(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """By a constant, or by another function of the same Gaussian."""
    x, divisor = operands
    known = together(lax.div_p, operands)
    if known is not None:
        function = divisor.view or (lambda value: value)
        return known if is_without_zero(function, divisor.source[0]) else NotImplemented
    if isinstance(divisor, GaussianArray):
        if not isinstance(x, GaussianArray):
            return NotImplemented
        raise UnknownOperation(  # also under on_unknown="sample": draws of the two would not belong together
            f'mode="moments": expected operations with a rule for a Gaussian input, got div of two Gaussians of shapes '
            f"{x.shape} and {divisor.shape} (as in a softmax or LayerNorm); put the function that divides them under "
            'jax.jit and write on_unknown="sample" to draw its input once a pass, or mode="weights"'
        )
    return _shifted(operands, lax.div_p, x.mean_value / divisor, x.variance / jnp.square(divisor))


@rule(lax.neg_p)
def negative(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """``-x``."""
    (x,) = operands
    if x.weight:
        return x.viewed(jnp.negative, lambda variance: variance)
    return x.function(-x.mean_value, x.variance, jnp.negative, affine=True)


def _enter_product(primitive: Any) -> None:
    @rule(primitive)
    def product(operands: Sequence[Any], params: dict[str, Any]) -> Any:
        """A product or convolution of which either factor, or both, are Gaussian: sums of :func:`multiply`."""
        (m, v), (n, w) = map(moments_of, operands)
        left, right = (isinstance(one, GaussianArray) for one in operands)
        variance: Any = 0.0
        if right:
            variance = primitive.bind(jnp.square(m) + v, w, **params)
        if left:
            variance = variance + primitive.bind(v, jnp.square(n), **params)
        return first_of(operands).like(primitive.bind(m, n, **params), variance)


_enter_product(lax.dot_general_p)
_enter_product(lax.conv_general_dilated_p)


def _enter_view(primitive: Any) -> None:
    @rule(primitive)
    def view(operands: Sequence[Any], params: dict[str, Any]) -> Any:
        """Elements rearranged, chosen or repeated: each keeps its mean and its variance."""
        x, *starts = operands
        if not isinstance(x, GaussianArray) or any(isinstance(one, GaussianArray) for one in starts):
            return NotImplemented
        if not primitive.multiple_results:
            return x.viewed(lambda part: primitive.bind(part, *starts, **params))
        number = len(primitive.bind(x.mean_value, *starts, **params))
        return [x.viewed(lambda part, i=i: primitive.bind(part, *starts, **params)[i]) for i in range(number)]


for _primitive in (*SHAPE_VIEWS, lax.broadcast_in_dim_p, lax.gather_p):
    _enter_view(_primitive)


@rule(lax.convert_element_type_p)
def convert(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """To another floating point type."""
    (x,) = operands
    if not jnp.issubdtype(params["new_dtype"], jnp.floating):
        return NotImplemented
    return x.viewed(lambda part: lax.convert_element_type_p.bind(part, **params))


@rule(lax.concatenate_p)
def concatenate(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Side by side; a constant has variance 0."""
    parts = [(m, v if isinstance(one, GaussianArray) else jnp.zeros_like(m))
             for one, (m, v) in zip(operands, map(moments_of, operands), strict=True)]  # fmt: skip
    means, variances = zip(*parts, strict=True)
    return first_of(operands).like(*(lax.concatenate_p.bind(*one, **params) for one in (means, variances)))


@rule(lax.pad_p)
def pad(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """With a constant, whose variance is 0."""
    x, value = operands
    if isinstance(value, GaussianArray):
        return NotImplemented
    variance = lax.pad_p.bind(x.variance, jnp.zeros((), x.variance.dtype), **params)
    return x.like(lax.pad_p.bind(x.mean_value, value, **params), variance)


@rule(lax.select_n_p)
def select(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Elements of one or the other, by a constant condition."""
    which, *cases = operands
    if isinstance(which, GaussianArray):
        return NotImplemented
    means = [moments_of(one)[0] for one in cases]
    variances = [one.variance if isinstance(one, GaussianArray) else jnp.zeros_like(one) for one in cases]
    return first_of(cases).like(lax.select_n(which, *means), lax.select_n(which, *variances))


@rule(lax.reduce_sum_p, lax.reduce_window_sum_p)
def total(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Sums of means and of variances, over axes or over windows; divided by their number, averages."""
    (x,) = operands
    primitive: Any = lax.reduce_window_sum_p if "window_dimensions" in params else lax.reduce_sum_p
    return x.like(primitive.bind(x.mean_value, **params), primitive.bind(x.variance, **params))


def maximum_of_two(m: Array, v: Array, n: Array, w: Array) -> tuple[Array, Array]:
    """Mean and variance of the larger of two independent Gaussians, which is read as a Gaussian in what follows.

    References:
        Clark 1961, doi:10.1287/opre.9.2.145, equations 1 and 2.
    """
    spread = jnp.sqrt(jnp.maximum(v + w, jnp.finfo(m.dtype).tiny))
    a = (m - n) / spread
    cdf, density = ndtr(a), jnp.exp(-0.5 * jnp.square(a)) / math.sqrt(2 * math.pi)
    first = m * cdf + n * (1 - cdf) + spread * density
    second = (jnp.square(m) + v) * cdf + (jnp.square(n) + w) * (1 - cdf) + (m + n) * spread * density
    return first, at_least_zero(second - jnp.square(first))


@rule(lax.max_p)
def maximum(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Element by element, as :func:`maximum_of_two`; against a constant a ReLU."""
    known = together(lax.max_p, operands)
    if known is not None:
        return known
    if all(isinstance(one, GaussianArray) for one in operands):
        (m, v), (n, w) = map(moments_of, operands)
        return operands[0].like(*maximum_of_two(m, v, n, w))
    place = int(not isinstance(operands[0], GaussianArray))
    x, other = operands[place], operands[1 - place]
    return through(x, Partial(jnp.maximum, other), lambda m, v: maximum_of_two(m, v, other + 0 * m, jnp.zeros_like(v)))


@rule(lax.min_p)
def minimum(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """``-max(-x, -y)``."""
    negated = [negative([one], {}) if isinstance(one, GaussianArray) else -one for one in operands]
    return negative([maximum(negated, {})], {})


def maximum_over(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The maximum of many, two at a time, in a tree: exact for two, their order counts for more."""
    while len(parts) > 1:
        half = len(parts) // 2
        pairs = zip(parts[:half], parts[half : 2 * half], strict=True)
        parts = [maximum_of_two(*one, *other) for one, other in pairs] + parts[2 * half :]
    return parts[0]


@rule(lax.reduce_max_p)
def greatest(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """The maximum over axes (:func:`maximum_over`)."""
    (x,) = operands
    axes = params["axes"]
    kept = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    flat = [jnp.moveaxis(part, axes, range(len(axes))).reshape(-1, *kept) for part in (x.mean_value, x.variance)]
    return x.like(*maximum_over(list(zip(*flat, strict=True))))


@rule(lax.reduce_window_max_p)
def max_pool(operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """The maximum of a window (:func:`maximum_over`)."""
    (x,) = operands
    if any(one != 1 for one in params["base_dilation"]):
        return NotImplemented
    edges = [(low, high, 0) for low, high in params["padding"]]
    least = jnp.asarray(-(float(jnp.finfo(x.dtype).max) ** 0.25), x.dtype)  # its square is finite
    mean = lax.pad(x.mean_value, least, edges)
    variance = lax.pad(x.variance, jnp.zeros((), x.dtype), edges)
    sizes, strides, gaps = (params[name] for name in ("window_dimensions", "window_strides", "window_dilation"))
    counts = [
        (n - (size - 1) * gap - 1) // step + 1
        for n, size, step, gap in zip(mean.shape, sizes, strides, gaps, strict=True)
    ]
    parts = []
    for offset in itertools.product(*(range(size) for size in sizes)):
        starts = [o * gap for o, gap in zip(offset, gaps, strict=True)]
        ends = [s + (count - 1) * step + 1 for s, count, step in zip(starts, counts, strides, strict=True)]
        parts.append(tuple(lax.slice(part, starts, ends, strides) for part in (mean, variance)))
    return x.like(*maximum_over(parts))


def _constant(operation: Callable[[Array], Any]) -> Callable:
    return lambda operands, params: operation(operands[0].mean_value)


rule(lax.is_finite_p)(_constant(jnp.isfinite))
