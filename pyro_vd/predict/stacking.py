"""A distribution as its tensors and what is left without them; distributions of many draws as one, draws first.

    Normal(loc, scale).to_event(1)  =  tensors [loc, scale]  +  Structure(Independent, base=Structure(Normal, ...), 1)

The tensors of every draw are stacked, and the structure is built again on the stacks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Independent,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
)

from pyro_vd.checks import describe
from pyro_vd.common.structure import ALTERNATIVES, Slot, Structure, event_dim_of, is_made_of_transforms


def take_apart(distribution: Any, batch_shape: torch.Size | None = None) -> tuple[Structure, list[Tensor]]:
    """The structure of a distribution and its tensors, each of the shape ``batch_shape`` and then its event.

    Args:
        distribution: any distribution whose constructor arguments are its attributes, and what Pyro puts around one
            (``to_event``, ``mask``, ``expand``, transforms, mixtures).
        batch_shape: a shape that its own broadcasts to; by default its own.

    Raises:
        TypeError: a distribution that does not keep the arguments it was made of.
    """
    batch_shape = torch.Size(distribution.batch_shape) if batch_shape is None else batch_shape
    tensors: list[Tensor] = []

    def nested(part: Any, shape: torch.Size = batch_shape) -> Structure:
        structure, own = take_apart(part, shape)
        tensors.extend(own)
        return structure

    def slot(value: Tensor, event_dim: int) -> Slot:
        event = value.shape[value.dim() - event_dim :]
        tensors.append(value.expand((*batch_shape, *event)))
        return Slot()

    if isinstance(distribution, dist.ExpandedDistribution):
        return take_apart(distribution.base_dist, batch_shape)
    if isinstance(distribution, Independent):
        number = distribution.reinterpreted_batch_ndims
        whole = batch_shape + distribution.event_shape[:number]
        return Structure(_independent, (("base", nested(distribution.base_dist, whole)), ("number", number))), tensors
    if isinstance(distribution, dist.MaskedDistribution):
        base, mask = nested(distribution.base_dist), distribution._mask
        mask = slot(mask, 0) if isinstance(mask, Tensor) else mask
        return Structure(dist.MaskedDistribution, (("base_dist", base), ("mask", mask))), tensors
    if isinstance(distribution, MixtureSameFamily):
        component: Any = distribution.component_distribution
        names = {
            "mixture_distribution": nested(distribution.mixture_distribution),
            "component_distribution": nested(component, batch_shape + component.batch_shape[-1:]),
        }
        return Structure(type(distribution), tuple(names.items())), tensors
    if isinstance(distribution, TransformedDistribution) and is_made_of_transforms(distribution):
        base = distribution.base_dist
        shape = batch_shape + base.batch_shape[len(distribution.batch_shape) :]
        steps = tuple(_transform(t, shape + base.event_shape, tensors) for t in distribution.transforms)
        base_structure, own = take_apart(base, shape)
        arguments = (*((f"step_{i}", step) for i, step in enumerate(steps)), ("base", base_structure))
        return Structure(_transformed, arguments), [*tensors, *own]
    arguments = []
    for name, value in _arguments(distribution).items():
        if isinstance(value, Tensor) and not value.dim() and name not in distribution.arg_constraints:
            float(value)  # (an error under vmap.) A setting such as a temperature, the same in every draw
        elif isinstance(value, Tensor):
            value = slot(value, event_dim_of(distribution, name, value.dim()))
        elif isinstance(value, Distribution):
            value = nested(value)
        arguments.append((name, value))
    return Structure(type(distribution), tuple(arguments)), tensors


def is_along(name: str, likelihood: Any, length: int) -> bool:
    """Whether the examples lie along the first axis; an error where they lie inside one event that has no parts."""
    shape = likelihood.batch_shape + likelihood.event_shape
    if not length or not shape or shape[0] != length:
        return False
    while isinstance(likelihood, Independent):
        likelihood = likelihood.base_dist
    if likelihood.batch_shape[:1] != shape[:1]:
        raise ValueError(
            f"batch_size: expected a likelihood at site {name!r} whose examples are its batch, got "
            f"{describe(likelihood)}, one distribution of all of them; leave batch_size out"
        )
    return True


def taken_apart(name: str, likelihood: Any) -> tuple[Structure, list[Tensor]]:
    """The likelihood taken apart, after a check that it can be put together again, the draws first."""
    try:
        structure, tensors = take_apart(likelihood)
        again = structure.build([tensor.unsqueeze(0) for tensor in tensors])
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"site {name!r}: expected a likelihood whose draws can be stacked into one distribution, got "
            f"{describe(likelihood)}: {error}; take a family of pyro.distributions, or posterior_predictive, which "
            "returns values"
        ) from error
    same = again.batch_shape == (1, *likelihood.batch_shape) and again.event_shape == likelihood.event_shape
    if same:
        with torch.random.fork_rng(devices=[]):  # a value to compare the densities at
            value = likelihood.sample()
        try:
            expected, got = likelihood.log_prob(value), again.log_prob(value)[0]
            same = torch.allclose(expected, got, rtol=1e-3, atol=1e-3, equal_nan=True)
        except NotImplementedError:
            pass
    if not same:
        raise TypeError(
            f"site {name!r}: expected a likelihood that its constructor makes again from its attributes "
            f"{[argument for argument, _ in structure.arguments]}, got {describe(likelihood)}, which then "
            "differs; keep every argument of its constructor as an attribute of that name"
        )
    return structure, tensors


def stacked(parts: Sequence[Tensor], join: Callable[..., Tensor], dim: int = 0) -> Tensor:
    """``join(parts, dim)``, where axes along which a tensor is repeated stay so: a constant takes one number."""
    repeated = [axis for axis in range(parts[0].dim()) if all(p.stride(axis) == 0 for p in parts)]
    repeated = [axis for axis in repeated if join is torch.stack or axis != dim]
    index = tuple(slice(0, 1) if axis in repeated else slice(None) for axis in range(parts[0].dim()))
    whole = join([part[index] for part in parts], dim)
    after = 1 if join is torch.stack else 0  # stacked first: the axes move by one
    sizes = list(whole.shape)
    for axis in repeated:
        sizes[axis + after] = parts[0].shape[axis]
    return whole.expand(sizes)


def _independent(base: Any, number: int) -> Any:
    return base.to_event(number)


def _transformed(base: Any, **steps: Any) -> Any:
    return dist.TransformedDistribution(base, list(steps.values()))


def _transform(transform: Transform, shape: torch.Size, tensors: list[Tensor]) -> Any:
    """A transform without its tensors, which are added to ``tensors``; ``shape`` is that of what it transforms."""
    if isinstance(transform, ComposeTransform):
        parts = tuple((f"part_{i}", _transform(t, shape, tensors)) for i, t in enumerate(transform.parts))
        return Structure(_composed, parts)
    if isinstance(transform, AffineTransform):
        arguments: list[tuple[str, Any]] = [("event_dim", transform.event_dim)]
        for name in ("loc", "scale"):
            value = getattr(transform, name)
            if isinstance(value, Tensor):
                tensors.append(value.expand(shape))
                value = Slot()
            arguments.append((name, value))
        return Structure(AffineTransform, tuple(arguments))
    held = [name for name, value in vars(transform).items() if isinstance(value, Tensor)]
    if held or isinstance(transform, torch.nn.Module):
        raise TypeError(
            f"expected a transform whose draws can be stacked (without tensors, or an AffineTransform), got "
            f"{type(transform).__name__}"
        )
    return transform


def _composed(**parts: Any) -> ComposeTransform:
    return ComposeTransform(list(parts.values()))


def _arguments(distribution: Any) -> dict[str, Any]:
    """What the constructor would be called with to make this distribution again."""
    own = dict(vars(distribution))
    for held in ("_categorical", "base_dist"):  # a family that wraps another one keeps its arguments there
        own = {**vars(own[held]), **own} if isinstance(own.get(held), Distribution) else own
    found: dict[str, Any] = {}
    parameters = inspect.signature(type(distribution).__init__).parameters
    for name, parameter in parameters.items():
        if name in ("self", "validate_args"):
            continue
        others = next((group for group in ALTERNATIVES if name in group), ())
        others = tuple(one for one in others if one in parameters)
        given = [one for one in others if one in own]
        kept = own.get("_param")
        if kept is not None and any(own[one] is kept for one in given):
            given = [one for one in given if own[one] is kept]
        if given and given[0] != name:
            continue  # another of the group is what it was made of
        if not given and any(one in found for one in others):
            continue
        try:
            found[name] = getattr(distribution, name)
        except (AttributeError, NotImplementedError):
            if parameter.default is inspect.Parameter.empty:
                raise TypeError(
                    f"expected a distribution that keeps what it is made of, got {type(distribution).__name__}, which "
                    f"has no attribute {name!r} for its argument of that name"
                ) from None
    return found
