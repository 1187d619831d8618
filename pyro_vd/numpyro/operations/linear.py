"""The linear operations: products, convolutions, lookups, biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from pyro_vd.numpyro.estimators import LinearOp, WeightNoise
from pyro_vd.numpyro.operations.table import enter


@enter(
    lax.dot_general_p,
    weight=("left", "right"),
    drops="covariance between the rows (tokens) of one example, and of entries of a batch that share a matrix",
)
def dot_general(left: Any, right: Any, **params: Any) -> LinearOp:
    """A contraction with the weight on either side, batch dimensions included (one matrix for each)."""
    side = int(isinstance(right, WeightNoise))
    weight, x = (right, left) if side else (left, right)
    contract, batch = params["dimension_numbers"]
    ndim, x_ndim = weight.loc.ndim, jnp.ndim(x)
    free = [d for d in range(ndim) if d not in (*contract[side], *batch[side])]
    x_free = [d for d in range(x_ndim) if d not in (*contract[1 - side], *batch[1 - side])]
    # The axes of the output: batch, then those of the left operand, then those of the right.
    stacked = len(batch[0])
    first_free = stacked + (len(x_free) if side else 0)
    first_x_free = stacked + (0 if side else len(free))
    return LinearOp(
        _binary(lax.dot_general_p, x, side, params),
        x,
        weight,
        weight_units=tuple(contract[side]),
        weight_outs=(*batch[side], *free),
        x_units=tuple(contract[1 - side]),
        out_units=(*range(stacked), *range(first_free, first_free + len(free))),
        example=(x_free[0], first_x_free) if x_free and not stacked else None,
    )


@enter(
    lax.conv_general_dilated_p,
    weight=("weight",),
    kind="approximate",
    drops="covariance between the positions of an example",
)
def convolution(x: Any, weight: Any, **params: Any) -> LinearOp | None:
    """A convolution of any layout, stride, dilation (of the input too: a transposed one) and feature groups."""
    if params["batch_group_count"] != 1:
        return None
    x_spec, weight_spec, out_spec = params["dimension_numbers"]
    return LinearOp(
        _binary(lax.conv_general_dilated_p, x, 1, params),
        x,
        weight,
        weight_units=(weight_spec[1],),
        weight_outs=(weight_spec[0],),
        x_units=(x_spec[1],),
        out_units=(out_spec[1],),
        example=(x_spec[0], out_spec[0]),
        positions=(tuple(x_spec[2:]), tuple(out_spec[2:])),
    )


@enter(
    lax.gather_p,
    weight=("weight",),
    kind="approximate",
    drops="covariance between tokens that share a row of the table",
)
def gather(weight: Any, indices: Any, **params: Any) -> LinearOp | None:
    """A lookup of elements or slices of the weight (an embedding): each looked-up element has noise of its own.

    The same row looked up twice is one weight: its covariance is dropped, as between the rows of a product.
    """
    numbers = params["dimension_numbers"]
    if numbers.operand_batching_dims:
        return None

    def apply(indices: Array, weight: Array) -> Array:
        return lax.gather_p.bind(weight, indices, **params)

    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(weight.loc.ndim) if d not in dropped]
    whole = [i for i, d in enumerate(kept) if params["slice_sizes"][d] == weight.loc.shape[d]]
    out_ndim = len(numbers.offset_dims) + jnp.ndim(indices) - 1
    rows = [axis for axis in range(out_ndim) if axis not in numbers.offset_dims]
    return LinearOp(
        apply,
        indices,
        weight,
        weight_units=(),
        weight_outs=tuple(kept[i] for i in whole),
        x_units=(),
        out_units=tuple(numbers.offset_dims[i] for i in whole),
        example=(0, rows[0]) if rows else None,
        apply_variance=apply,
    )


def bias(x: Array, weight: WeightNoise) -> LinearOp | None:
    """A weight added to every example of ``x``, with size 1 where it is repeated; without ``x`` itself.

    None for a whole matrix: the term to which it is added need not hold examples.
    """
    shape = weight.loc.shape
    if not weight.independent or (1 not in shape and len(shape) > 1):
        return None

    def apply(x: Array, weight: Array) -> Array:
        return jnp.broadcast_to(weight, x.shape)

    units = tuple(axis for axis, size in enumerate(shape) if size > 1)
    example = (0, 0) if len(shape) > 1 and shape[0] == 1 else None
    return LinearOp(apply, x, weight, (), units, (), units, example, apply_variance=apply)


def _binary(primitive: Any, x: Array, side: int, params: dict[str, Any]) -> Callable[[Array, Array], Array]:
    """``(x, weight) -> output``, the weight at position ``side``."""
    given = jnp.result_type(x)

    def apply(x: Array, weight: Array) -> Array:
        # The variance of a product in half precision is asked for in float32.
        wider = {} if x.dtype == given else {"preferred_element_type": None}
        left, right = (x, weight) if side else (weight, x)
        return primitive.bind(left, right, **(params | wider))

    return apply
