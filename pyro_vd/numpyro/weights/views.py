"""Which primitives on a random weight are views: linear maps of its elements.

A view takes each element of its result from one element of the weight, at most once, times a constant:
its mean is the view of the mean and its variance the view (of the constant squared) of the variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from pyro_vd.numpyro._jax import is_traced, sharding_constraint_p, stop_gradient_p

# Rearrangements and selections of elements: ``primitive.bind(weight, *starts, **params)``.
SHAPE_VIEWS = (
    lax.transpose_p, lax.reshape_p, lax.squeeze_p, lax.rev_p, lax.slice_p, lax.dynamic_slice_p, lax.split_p,
    lax.copy_p, sharding_constraint_p, stop_gradient_p,
)  # fmt: skip


def shape_view(primitive: Any, starts: tuple, params: dict[str, Any], part: int | None = None) -> Partial:
    """The view as a function of an array; ``part`` is its result's number where there are several."""

    def view(*args: Any) -> Array:
        *starts, weight = args
        result = primitive.bind(weight, *starts, **params)
        return result if part is None else result[part]

    return Partial(view, *starts)


def compose(outer: Callable[[Array], Array], inner: Callable[[Array], Array]) -> Partial:
    """``weight -> outer(inner(weight))``, a pytree if they are."""
    return Partial(_apply_both, outer, inner)


def _apply_both(outer: Callable[[Array], Array], inner: Callable[[Array], Array], weight: Array) -> Array:
    return outer(inner(weight))


@dataclass(frozen=True, eq=False)
class Region:
    """Which elements of a whole weight a view of it holds, computed on demand.

    Attributes:
        shape: of the whole weight.
        steps: the views taken so far; None where they depend on traced values, and may hold any element.
    """

    shape: tuple[int, ...]
    steps: tuple[Callable[[Array], Array], ...] | None = ()

    def then(self, step: Callable[[Array], Array]) -> Region:
        """The region of a view of this view."""
        traced = any(is_traced(leaf) for leaf in jax.tree.leaves(step))
        return Region(self.shape, None if traced or self.steps is None else (*self.steps, step))

    def overlaps(self, other: Region) -> bool:
        """Whether two views of one weight hold a common element."""
        if self.elements is None or other.elements is None:
            return True
        return bool(np.intersect1d(self.elements, other.elements, assume_unique=True).size)

    @cached_property
    def elements(self) -> np.ndarray | None:
        """The numbers of its elements, in the order of the whole weight; None if it may hold any."""
        if self.steps is None:
            return None
        numbers = np.arange(np.prod(self.shape, dtype=int)).reshape(self.shape)
        return _on_numbers(self.steps, numbers).reshape(-1)


def unit_dim_after(view: Callable[[Array], Array], shape: tuple[int, ...], unit_dim: int) -> int | None:
    """Where the units of a weight lie in a view of it; None where it mixes, drops or reorders them."""
    units = np.arange(shape[unit_dim])
    numbers = np.broadcast_to(np.expand_dims(units, [d for d in range(len(shape)) if d != unit_dim]), shape)
    if any(is_traced(leaf) for leaf in jax.tree.leaves(view)):
        return None
    seen = _on_numbers((view,), numbers)
    for dim in range(seen.ndim):
        along = np.moveaxis(seen, dim, -1)
        if along.shape[-1] == len(units) and (along == units).all():
            return dim
    return None


def _on_numbers(steps: tuple[Callable[[Array], Array], ...], numbers: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        result = jnp.asarray(numbers)
        for step in steps:
            result = step(result)
        return np.asarray(result)
