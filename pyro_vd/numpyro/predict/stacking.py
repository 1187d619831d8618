"""A distribution as its arrays and what is left without them; distributions of many draws as one, draws first.

    Normal(loc, scale).to_event(1)  =  arrays [loc, scale]  +  Structure(Independent, base=Structure(Normal, ...), 1)

The arrays of every draw are stacked, and the structure is built again on the stacks.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import AffineTransform, ComposeTransform, Transform

from pyro_vd.common.examples import is_array
from pyro_vd.common.structure import ALTERNATIVES, Slot, Structure, event_dim_of, is_made_of_transforms
from pyro_vd.numpyro.checks import describe


def take_apart(distribution: Any, batch_shape: tuple[int, ...] | None = None) -> tuple[Structure, list[Array]]:
    """The structure of a distribution and its arrays, each of the shape ``batch_shape`` and then its event.

    Args:
        distribution: any distribution whose constructor arguments are its attributes, and what NumPyro puts around
            one (``to_event``, ``mask``, ``expand``, transforms, mixtures).
        batch_shape: a shape that its own broadcasts to; by default its own.

    Raises:
        TypeError: a distribution that does not keep the arguments it was made of.
    """
    batch_shape = tuple(distribution.batch_shape) if batch_shape is None else batch_shape
    arrays: list[Array] = []

    def nested(part: Any, shape: tuple[int, ...] = batch_shape) -> Structure:
        structure, own = take_apart(part, shape)
        arrays.extend(own)
        return structure

    def slot(value: Any, event_dim: int) -> Slot:
        value = jnp.asarray(value)
        event = value.shape[value.ndim - event_dim :]
        arrays.append(jnp.broadcast_to(value, (*batch_shape, *event)))
        return Slot()

    if isinstance(distribution, dist.ExpandedDistribution):
        return take_apart(distribution.base_dist, batch_shape)
    if isinstance(distribution, dist.Independent):
        number = distribution.reinterpreted_batch_ndims
        whole = batch_shape + tuple(distribution.event_shape[:number])
        base = nested(distribution.base_dist, whole)
        return Structure(dist.Independent, (("base_dist", base), ("reinterpreted_batch_ndims", number))), arrays
    if isinstance(distribution, dist.MaskedDistribution):
        base, mask = nested(distribution.base_dist), distribution._mask
        mask = slot(mask, 0) if is_array(mask) else mask
        return Structure(dist.MaskedDistribution, (("base_dist", base), ("mask", mask))), arrays
    if isinstance(distribution, dist.MixtureSameFamily):
        component = distribution.component_distribution
        names = {
            "mixing_distribution": nested(distribution.mixing_distribution),
            "component_distribution": nested(component, batch_shape + tuple(component.batch_shape[-1:])),
        }
        return Structure(type(distribution), tuple(names.items())), arrays
    if isinstance(distribution, dist.TransformedDistribution) and is_made_of_transforms(distribution):
        base = distribution.base_dist
        shape = batch_shape + tuple(base.batch_shape[len(distribution.batch_shape) :])
        steps = tuple(_transform(t, shape + tuple(base.event_shape), arrays) for t in distribution.transforms)
        base_structure, own = take_apart(base, shape)
        arguments = (*((f"step_{i}", step) for i, step in enumerate(steps)), ("base", base_structure))
        return Structure(_transformed, arguments), [*arrays, *own]
    found = []
    for name, value in _arguments(distribution).items():
        if isinstance(value, Distribution):
            value = nested(value)
        elif name in distribution.arg_constraints or is_array(value):
            value = slot(value, event_dim_of(distribution, name, np.ndim(value)))
        elif isinstance(value, (list, tuple)) and any(isinstance(part, Distribution) for part in value):
            raise TypeError(f"expected a distribution of arrays, got {type(distribution).__name__}, a list of others")
        found.append((name, value))
    return Structure(type(distribution), tuple(found)), arrays


def is_along(name: str, likelihood: Any, length: int) -> bool:
    """Whether the examples lie along the first axis; an error where they lie inside one event that has no parts."""
    shape = (*likelihood.batch_shape, *likelihood.event_shape)
    if not length or not shape or shape[0] != length:
        return False
    while isinstance(likelihood, dist.Independent):
        likelihood = likelihood.base_dist
    if tuple(likelihood.batch_shape[:1]) != shape[:1]:
        raise ValueError(
            f"batch_size: expected a likelihood at site {name!r} whose examples are its batch, got "
            f"{describe(likelihood)}, one distribution of all of them; leave batch_size out"
        )
    return True


def _transformed(base: Any, **steps: Any) -> Any:
    return dist.TransformedDistribution(base, list(steps.values()))


def _transform(transform: Transform, shape: tuple[int, ...], arrays: list[Array]) -> Any:
    """A transform without its arrays, which are added to ``arrays``; ``shape`` is that of what it transforms."""
    if isinstance(transform, ComposeTransform):
        parts = tuple((f"part_{i}", _transform(t, shape, arrays)) for i, t in enumerate(transform.parts))
        return Structure(_composed, parts)
    if isinstance(transform, AffineTransform):
        for value in (transform.loc, transform.scale):
            arrays.append(jnp.broadcast_to(jnp.asarray(value), shape))
        return Structure(_Affine(transform.domain), (("loc", Slot()), ("scale", Slot())))
    if any(is_array(value) for value in vars(transform).values()):
        raise TypeError(
            "expected a transform whose draws can be stacked (without arrays, or an AffineTransform), got "
            f"{type(transform).__name__}"
        )
    return transform


def _composed(**parts: Any) -> ComposeTransform:
    return ComposeTransform(list(parts.values()))


class _Affine:
    """``AffineTransform`` on a domain; equal where the domains are."""

    def __init__(self, domain: Any):
        self.domain = domain

    def __call__(self, loc: Array, scale: Array) -> AffineTransform:
        return AffineTransform(loc, scale, domain=self.domain)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Affine) and type(self.domain) is type(other.domain)

    def __hash__(self) -> int:
        return hash(type(self.domain))


def _arguments(distribution: Any) -> dict[str, Any]:
    """What the constructor would be called with to make this distribution again."""
    own = vars(distribution)
    found: dict[str, Any] = {}
    parameters = inspect.signature(type(distribution).__init__).parameters
    for name, parameter in parameters.items():
        if name in ("self", "validate_args"):
            continue
        others = next((group for group in ALTERNATIVES if name in group), ())
        others = tuple(one for one in others if one in parameters)
        given = [one for one in others if own.get(one) is not None]
        if (given and given[0] != name) or (not given and any(one in found for one in others)):
            continue  # another of the group is what it was made of
        value = _attribute(distribution, name)
        if value is not _MISSING:
            found[name] = value
        elif parameter.default is inspect.Parameter.empty:
            raise TypeError(
                f"expected a distribution that keeps what it is made of, got {type(distribution).__name__}, which "
                f"has no attribute {name!r} for its argument of that name"
            )
    return found


_MISSING: Any = object()


def _attribute(distribution: Any, name: str) -> Any:
    try:
        return getattr(distribution, name)
    except (AttributeError, NotImplementedError):
        return _MISSING
