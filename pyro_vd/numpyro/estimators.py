"""How the output of a linear operation on a random weight is sampled: pure functions of arrays and a key.

Every operation here is linear in its weight and in its input, ``y = apply(x, w)``, so its output under
``w ~ N(loc, variance)`` has ``mean = apply(x, loc)`` and ``variance = apply(x**2, variance)``.

    local        one noise per output element (the local reparameterization trick)
    per_example  one weight draw per example
    flipout      one perturbation per step, its signs flipped per example

The fourth, "shared" (one weight draw per step), needs no rule: the weight is drawn and used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

ESTIMATORS = ("local", "shared", "per_example", "flipout")

Axes = tuple[int, ...]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["loc", "variance", "draw_units", "factor"],
    meta_fields=["unit_dim"],
)
@dataclass(frozen=True)
class WeightNoise:
    """The parts of a random weight, ``w = s * (loc + sqrt(variance) * e) + sum_r factor[r] * z_r``.

    A pytree, so that a random weight passes through the transformations of JAX.

    Attributes:
        loc: mean, shape ``weight``.
        variance: variance of the part that is independent over elements, shape ``weight``; None for 0.
        unit_dim: the dimension of the weight along which its units lie, where ``s`` is random.
        draw_units: key, sample shape -> ``s``, shape ``sample_shape + (units,)``; None where s = 1. A
            ``jax.tree_util.Partial``, since what it draws from are arrays.
        factor: low-rank factor, shape ``(rank,) + weight``, of z ~ N(0, I); None without one.
    """

    loc: Array
    variance: Array | None
    unit_dim: int | None = None
    draw_units: Partial | None = None
    factor: Array | None = None

    @property
    def independent(self) -> bool:
        """True where the elements of the weight are independent Gaussians."""
        return self.draw_units is None and self.factor is None

    def draw(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Whole weights, shape ``sample_shape + weight``."""
        unit_key, element_key, rank_key = jax.random.split(key, 3)
        units = None if self.draw_units is None else self.draw_units(unit_key, sample_shape)
        weight = jnp.broadcast_to(self.loc, (*sample_shape, *self.loc.shape))
        if self.variance is not None:
            noise = jax.random.normal(element_key, weight.shape, self.variance.dtype)
            weight = self.loc + (safe_sqrt(self.variance) * noise).astype(weight.dtype)
        if units is not None:
            assert self.unit_dim is not None
            weight = weight * jnp.expand_dims(units, _others(weight.ndim, len(sample_shape), self.unit_dim))
        if self.factor is not None:
            z = jax.random.normal(rank_key, (*sample_shape, len(self.factor)), self.factor.dtype)
            weight = weight + jnp.tensordot(z, self.factor, axes=1)
        return weight


def independent_noise(loc: Array, variance: Array | None) -> WeightNoise:
    """The noise of a weight whose elements are independent ``N(loc, variance)``; None is variance 0."""
    return WeightNoise(loc, variance)


@dataclass(frozen=True)
class LinearOp:
    """One call of an operation linear in input and weight.

    Attributes:
        apply: ``(x, weight) -> output``.
        x: the input.
        weight: its noise.
        weight_units, x_units: the weight's dimensions of input units (summed over), and the axes of x they meet.
        weight_outs, out_units: the weight's dimensions that remain, and the axes of the output they become.
        example: the axis of the input and of the output that holds the examples; None without one.
        positions: the axes of input and of output (of a convolution) that share the weight within an example.
        apply_variance: ``(x, variance) -> variance of the output``, where it is not ``apply(x**2, variance)``.

    Example:
        See :func:`pyro_vd.numpyro.register_rule`.

    See also:
        :func:`pyro_vd.numpyro.register_rule`, :func:`pyro_vd.numpyro.operations_table`.
    """

    apply: Callable[[Array, Array], Array]
    x: Array
    weight: WeightNoise
    weight_units: Axes
    weight_outs: Axes
    x_units: Axes
    out_units: Axes
    example: tuple[int, int] | None
    positions: tuple[Axes, Axes] = ((), ())
    apply_variance: Callable[[Array, Array], Array] | None = None


def safe_sqrt(variance: Array) -> Array:
    """``sqrt(max(variance, 0))`` with gradient 0 where the variance is not positive.

    Exact at 0: no floor under the root, which would add noise. Convolution algorithms can return a
    variance a little below 0; it is read as 0.
    """
    positive = ~(variance <= 0)  # NaN stays NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def at_least_single(dtype: Any) -> Any:
    """The floating point type, float32 in place of a half precision one."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def moments(op: LinearOp, x: Array | None = None) -> tuple[Array, Array | None]:
    """Mean and variance of the output from the independent part of the weight's noise.

    The variance is computed in float32 at least: in half precision 300**2 overflows and (1e-4)**2
    underflows. For convolutions it is exact per position; the covariance between positions, which
    share the weight, is dropped (as every published implementation does).

    Returns:
        mean, variance (None where the weight has no independent part).
    """
    x = op.x if x is None else x
    mean, variance = op.apply(x, op.weight.loc), op.weight.variance
    if variance is None:
        return mean, None
    dtype = at_least_single(mean.dtype)
    if op.apply_variance is not None:
        return mean, op.apply_variance(x, variance.astype(dtype))
    return mean, op.apply(jnp.square(x.astype(dtype)), variance.astype(dtype))


def local(op: LinearOp, key: Array) -> Array:
    """Sample the output with noise of its own for every output element.

    Input-unit noise and low-rank noise are drawn per row (per example for a convolution, whose positions
    share the weight).

    References:
        Kingma et al. 2015, arXiv:1506.02557, equations 6 and (for unit noise) 8.
    """
    noise = op.weight
    if noise.independent:
        return _gaussian(op, op.x, key)
    unit_key, element_key, rank_key = jax.random.split(key, 3)
    if noise.draw_units is not None and noise.unit_dim in op.weight_outs:
        output = local(replace(op, weight=independent_noise(noise.loc, noise.variance)), element_key)
        axis = op.out_units[op.weight_outs.index(noise.unit_dim)]
        return output * _unit_noise(noise.draw_units, unit_key, output, axis, op.positions[1])
    x = op.x
    if noise.draw_units is not None:
        assert noise.unit_dim is not None
        axis = op.x_units[op.weight_units.index(noise.unit_dim)]
        x = x * _unit_noise(noise.draw_units, unit_key, x, axis, op.positions[0])
    output = _gaussian(op, x, element_key)
    if noise.factor is not None:
        outputs = jax.vmap(op.apply, in_axes=(None, 0))(x, noise.factor)
        rows = _ones_at(output.shape, (*op.out_units, *op.positions[1]))
        output = output + (jax.random.normal(rank_key, (len(outputs), *rows), output.dtype) * outputs).sum(0)
    return output


def per_example(op: LinearOp, key: Array) -> Array:
    """Sample the output with one whole weight draw for every example, by one batched product.

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.2 (the slow way to uncorrelated examples).
    """
    assert op.example is not None
    axis, out_axis = op.example
    weights = op.weight.draw(key, (op.x.shape[axis],))

    def one(x: Array, weight: Array) -> Array:
        return op.apply(jnp.expand_dims(x, axis), weight).squeeze(out_axis)

    return jax.vmap(one, in_axes=(axis, 0), out_axes=out_axis)(op.x, weights)


def flipout(op: LinearOp, key: Array) -> Array:
    """Sample the output with one perturbation of the weight, its signs flipped per example and unit.

    ``y = apply(x, loc) + apply(x * r, w - loc) * s`` with r, s in {-1, 1} per example and input or output
    unit, the same for all positions of an example.

    References:
        Wen et al. 2018, arXiv:1803.04386, equation 3.
    """
    assert op.example is not None
    in_key, out_key, draw_key = jax.random.split(key, 3)
    mean = op.apply(op.x, op.weight.loc)
    # A lookup has no input units to flip: its x are indices.
    x = op.x * _random_signs(in_key, op.x, (op.example[0], *op.x_units)) if op.x_units else op.x
    signs = _random_signs(out_key, mean, (op.example[1], *op.out_units))
    return mean + op.apply(x, op.weight.draw(draw_key) - op.weight.loc) * signs


SAMPLERS: dict[str, Callable[[LinearOp, Array], Array]] = {
    "local": local,
    "per_example": per_example,
    "flipout": flipout,
}


def _gaussian(op: LinearOp, x: Array, key: Array) -> Array:
    mean, variance = moments(op, x)
    if variance is None:
        return mean
    return mean + (safe_sqrt(variance) * jax.random.normal(key, variance.shape, variance.dtype)).astype(mean.dtype)


def _unit_noise(draw_units: Partial, key: Array, array: Array, axis: int, positions: Axes) -> Array:
    """Unit noise along ``axis`` of ``array``: independent per row, shared by the positions of an example."""
    rows = _ones_at(array.shape, (axis, *positions))
    noise = jnp.swapaxes(draw_units(key, rows), axis, -1).squeeze(-1).astype(array.dtype)
    # Grouped convolution: the input units of every group carry the same noise, as in weight space.
    repeats = array.shape[axis] // noise.shape[axis]
    return jnp.concatenate([noise] * repeats, axis) if repeats > 1 else noise


def _random_signs(key: Array, array: Array, axes: Collection[int]) -> Array:
    shape = _ones_at(array.shape, set(range(array.ndim)) - set(axes))
    return jax.random.rademacher(key, shape, array.dtype)


def _ones_at(shape: tuple[int, ...], axes: Collection[int]) -> tuple[int, ...]:
    """``shape`` with 1 in place of the sizes of ``axes``."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _others(ndim: int, lead: int, unit_dim: int) -> Axes:
    """The axes of an array with ``lead`` sample axes that are neither those nor the units'."""
    return tuple(axis for axis in range(lead, ndim) if axis != lead + unit_dim)
