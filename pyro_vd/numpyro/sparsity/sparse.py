"""Weights of which nonzero elements are stored, in the place of arrays, in any net: products inside ``quax.quaxify``.

    y = x W^T = (W x^T)^T

BCSR is compressed by rows and has to be on the left; BCOO is on the right, as in the net. Any other use of a weight has
it dense.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import quax
from jax import Array, lax
from jax.core import ShapedArray
from jax.experimental import sparse
from jax.typing import ArrayLike


class SparseWeight(quax.ArrayValue):
    """A matrix as BCOO or BCSR.

    Args:
        matrix: a BCSR of (outputs, inputs), or a BCOO of (inputs, outputs).
        in_axis: the axis of inputs of the weight, 0 for a kernel of flax, 1 for a weight of equinox.
    """

    matrix: Any
    in_axis: int = eqx.field(static=True)

    def aval(self) -> Any:
        outputs, inputs = self.matrix.shape if isinstance(self.matrix, sparse.BCSR) else self.matrix.shape[::-1]
        return ShapedArray((outputs, inputs) if self.in_axis else (inputs, outputs), self.matrix.dtype)

    def materialise(self) -> Array:
        dense = self.matrix.todense()
        return dense if isinstance(self.matrix, sparse.BCSR) == bool(self.in_axis) else dense.T

    def product(self, columns: Array) -> Array:
        """``W x`` with ``W`` of (outputs, inputs) and ``x`` of (inputs, examples)."""
        if isinstance(self.matrix, sparse.BCSR):
            return self.matrix @ columns
        return (columns.T @ self.matrix).T


def sparse_weight(weight: Array, in_axis: int, form: str) -> SparseWeight:
    """A dense matrix as ``"bcoo"`` or ``"bcsr"``."""
    rows = weight if in_axis else weight.T
    return SparseWeight(sparse.BCSR.fromdense(rows) if form == "bcsr" else sparse.BCOO.fromdense(rows.T), in_axis)


def _product(weight: SparseWeight, x: Any, axes: tuple, other: tuple, batch: tuple) -> Array | None:
    """Outputs first, then the other axes of ``x``; None where it is not a product over the inputs alone."""
    if tuple(axes) != (weight.in_axis,) or any(batch) or x.dtype != weight.dtype:
        return None
    columns = jnp.moveaxis(x, other[0], 0)
    y = weight.product(columns.reshape(columns.shape[0], -1))
    return y.reshape(y.shape[0], *columns.shape[1:])


@quax.register(lax.dot_general_p)
def _(weight: SparseWeight, x: ArrayLike, *, dimension_numbers: Any, **params: Any):
    (ours, theirs), batch = dimension_numbers
    y = _product(weight, x, ours, theirs, batch)
    if y is None:
        return lax.dot_general_p.bind(weight.materialise(), x, dimension_numbers=dimension_numbers, **params)
    return y.astype(params["preferred_element_type"] or y.dtype)


@quax.register(lax.dot_general_p)
def _(x: ArrayLike, weight: SparseWeight, *, dimension_numbers: Any, **params: Any):
    (theirs, ours), batch = dimension_numbers
    y = _product(weight, x, ours, theirs, batch)
    if y is None:
        return lax.dot_general_p.bind(x, weight.materialise(), dimension_numbers=dimension_numbers, **params)
    return jnp.moveaxis(y, 0, -1).astype(params["preferred_element_type"] or y.dtype)


@quax.register(lax.transpose_p)
def _(weight: SparseWeight, *, permutation: Any):
    if tuple(permutation) != (1, 0):
        return weight
    return SparseWeight(weight.matrix, 1 - weight.in_axis)
