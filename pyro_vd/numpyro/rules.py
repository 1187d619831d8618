"""What Quax does with a random weight among the operands of a primitive: views, sums and control flow, registered.

Importing this file has an effect: the rules become those of :class:`RandomWeight`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import quax
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.tree_util import Partial
from jax.typing import ArrayLike

from pyro_vd.numpyro._jax import jit_p, remat_p, replace_rule
from pyro_vd.numpyro.estimators import WeightNoise, at_least_single
from pyro_vd.numpyro.operations.linear import bias
from pyro_vd.numpyro.weights.random_weight import RandomWeight, sample, without_rule
from pyro_vd.numpyro.weights.views import SHAPE_VIEWS, Region, compose, shape_view, unit_dim_after


def rearranged(weight: RandomWeight, view: Partial) -> RandomWeight | None:
    """The view of the weight that takes each element from one of it; None where its noise has no such view."""
    noise, unit_dim = weight.noise, weight.noise.unit_dim
    if noise.draw_units is not None:
        assert unit_dim is not None
        unit_dim = unit_dim_after(view, noise.loc.shape, unit_dim)
        if unit_dim is None:
            return None
    parts = WeightNoise(
        view(noise.loc),
        None if noise.variance is None else view(noise.variance),
        unit_dim,
        noise.draw_units,
        None if noise.factor is None else jax.vmap(view)(noise.factor),
    )
    return _rewrap(weight, parts, view(weight.variance), view, weight._region.then(view))


def scaled(weight: RandomWeight, operation: Callable[[Array, Any], Array], factor: Any) -> RandomWeight | None:
    """``operation(weight, factor)``, a product or quotient; None where it repeats elements of the weight."""
    shape = weight.noise.loc.shape
    try:
        if jnp.broadcast_shapes(shape, jnp.shape(factor)) != shape:
            return None
    except ValueError:
        return None

    def view(factor: Any, weight: Array) -> Array:
        return operation(weight, factor)

    times = Partial(view, factor)
    noise = weight.noise
    parts = WeightNoise(
        times(noise.loc),
        None if noise.variance is None else times(times(noise.variance)),
        noise.unit_dim,
        noise.draw_units,
        None if noise.factor is None else jax.vmap(times)(noise.factor),
    )
    return _rewrap(weight, parts, times(times(weight.variance)), times, weight._region)


def converted(weight: RandomWeight, dtype: Any) -> RandomWeight | None:
    """The weight in another floating point type, its variance in float32 at least; None for integers."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return None

    def view(weight: Array) -> Array:
        return weight.astype(dtype)

    def wide(variance: Array) -> Array:
        return variance.astype(at_least_single(dtype))

    noise = weight.noise
    parts = WeightNoise(
        view(noise.loc),
        None if noise.variance is None else wide(noise.variance),
        noise.unit_dim,
        noise.draw_units,
        None if noise.factor is None else view(noise.factor),
    )
    return _rewrap(weight, parts, wide(weight.variance), Partial(view), weight._region)


def repeated(weight: RandomWeight, shape: tuple[int, ...], dims: tuple[int, ...]) -> RandomWeight | None:
    """The weight broadcast to ``shape``, its dimensions at ``dims``: kept with size 1 where it is repeated."""
    base = weight.noise.loc.shape
    ones = tuple(base[dims.index(axis)] if axis in dims else 1 for axis in range(len(shape)))

    def view(weight: Array) -> Array:
        return lax.broadcast_in_dim(weight, ones, dims)

    new = rearranged(weight, Partial(view))
    if new is None or ones == shape:
        return new
    return _rewrap(weight, new.noise, new.variance, Partial(view), new._region, shape)


def _rewrap(
    weight: RandomWeight,
    noise: WeightNoise,
    variance: Array,
    view: Partial,
    region: Region,
    repeated: tuple[int, ...] | None = None,
) -> RandomWeight:
    return RandomWeight(
        noise, variance, weight.key, weight.state, origin=weight._origin, view=compose(view, weight._view),
        region=region, repeated=weight._repeated if repeated is None else repeated,
    )  # fmt: skip


def _sum(x: Any, weight: RandomWeight) -> Array | None:
    """``x + weight``, the weight a bias."""
    if jnp.ndim(x) != weight.ndim:
        return None
    x = jnp.broadcast_to(jnp.asarray(x), jnp.broadcast_shapes(jnp.shape(x), weight.shape))
    sampled = sample(bias, x, weight, "add")
    return None if sampled is None else x + sampled


def _difference(x: Any, weight: RandomWeight) -> Array | None:
    return _sum(x, _negative(weight))


def _negative(weight: RandomWeight) -> RandomWeight:
    new = scaled(weight, lax.mul, jnp.asarray(-1, weight.dtype))
    assert new is not None
    return new


def _product(factor: Any, weight: RandomWeight) -> RandomWeight | None:
    return scaled(weight, lax.mul, factor)


def _quotient(weight: RandomWeight, divisor: Any) -> RandomWeight | None:
    return scaled(weight, lax.div, divisor)


def _register_shape_view(primitive: Any) -> None:
    @quax.register(primitive)
    def _(weight: RandomWeight, *starts: ArrayLike, **params: Any):
        parts = range(len(params["sizes"])) if primitive is lax.split_p else [None]
        views = []
        if weight._repeated is None:
            views = [rearranged(weight, shape_view(primitive, starts, params, part)) for part in parts]
        if not views or None in views:
            return without_rule(primitive, (weight, *starts), params)
        return views if primitive.multiple_results else views[0]


for _primitive in SHAPE_VIEWS:
    _register_shape_view(_primitive)


@quax.register(lax.broadcast_in_dim_p)
def _(weight: RandomWeight, *dynamic: ArrayLike, shape, broadcast_dimensions, sharding):
    new = repeated(weight, tuple(shape), tuple(broadcast_dimensions))
    params = {"shape": shape, "broadcast_dimensions": broadcast_dimensions, "sharding": sharding}
    return without_rule(lax.broadcast_in_dim_p, (weight, *dynamic), params) if new is None else new


@quax.register(lax.convert_element_type_p)
def _(weight: RandomWeight, **params: Any):
    new = converted(weight, params["new_dtype"])
    return without_rule(lax.convert_element_type_p, (weight,), params) if new is None else new


@quax.register(lax.neg_p)
def _(weight: RandomWeight):
    return _negative(weight)


def _register_left(primitive: Any, rule: Callable[[RandomWeight, Any], Any]) -> None:
    @quax.register(primitive)
    def _(weight: RandomWeight, other: ArrayLike, **params: Any):
        result = None if any(params.values()) else rule(weight, other)
        return without_rule(primitive, (weight, other), params) if result is None else result


def _register_right(primitive: Any, rule: Callable[[Any, RandomWeight], Any]) -> None:
    @quax.register(primitive)
    def _(other: ArrayLike, weight: RandomWeight, **params: Any):
        result = None if any(params.values()) else rule(other, weight)
        return without_rule(primitive, (other, weight), params) if result is None else result


_register_right(lax.add_p, _sum)
_register_left(lax.add_p, lambda weight, x: _sum(x, weight))
_register_right(lax.sub_p, _difference)
_register_right(lax.mul_p, _product)
_register_left(lax.mul_p, lambda weight, factor: _product(factor, weight))
_register_left(lax.div_p, _quotient)


@replace_rule(jit_p)
def _(*args: ArrayLike | RandomWeight, **params: Any):
    """Quax's own rule compiles the body once for each weight it has not seen, and does not run it again for one it
    has: a second use would go unnoticed. The body is evaluated in place instead."""
    if not _random(args):
        return jit_p.bind(*args, **params)
    return quax.quaxify(jaxpr_as_fun(params["jaxpr"]))(*args)


@quax.register(remat_p)
def _(*args: ArrayLike | RandomWeight, jaxpr: Any, prevent_cse: Any, policy: Any, **params: Any):
    """``jax.checkpoint``: its body is run again for the gradient, where the same keys give the same noise."""
    leaves, structure = jax.tree.flatten(args)

    def body(leaves: list[Array]) -> Any:
        return quax.quaxify(jaxpr_as_fun(ClosedJaxpr(jaxpr, ())))(*jax.tree.unflatten(structure, leaves))

    return jax.checkpoint(body, prevent_cse=prevent_cse, policy=policy)(leaves)


def _register_control_flow(primitive: Any) -> None:
    # A body runs any number of times, but is traced once: one coherent draw for all of them.
    @replace_rule(primitive)
    def _(*args: ArrayLike | RandomWeight, **params: Any):
        return without_rule(primitive, args, params)


for _primitive in (lax.scan_p, lax.while_p, lax.cond_p):
    _register_control_flow(_primitive)


def _random(values: Any) -> bool:
    return any(isinstance(value, RandomWeight) for value in values)
