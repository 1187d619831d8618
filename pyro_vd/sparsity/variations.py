"""Other inputs that a net takes, made from an example: they show what depends on the example alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

SEED = 0


class Variation(NamedTuple):
    """A call, on the CPU, and the outputs of the net for it."""

    args: tuple
    kwargs: dict[str, Any]
    outputs: Any
    what: str

    def call(self, net: nn.Module) -> Any:
        """The outputs of another net, on the CPU."""
        return _call(net, self.args, self.kwargs)


@torch.no_grad()
def variations(net: nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[Variation]:
    """The example with noise, and the same of twice the size along each axis, as far as ``net`` takes them.

    Floating point inputs of a net with a recurrent layer keep their last axis. Integers are drawn up to the largest
    (if all are the same, to one more), or permuted, or left, whichever ``net`` takes first. A copy of ``net``
    runs on the CPU, where an index that is too large is an error that does no harm.

    Returns:
        The calls that ``net`` takes without an error or a NaN; the global random state is as before.
    """
    try:
        net = on_cpu(net)
    except Exception:  # of a net that cannot be copied or moved: the example alone is compared
        return []
    args, kwargs = tree_map(lambda one: one.detach().cpu() if isinstance(one, Tensor) else one, (args, kwargs))
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    # PyTorch's kernel for an LSTM does not look at the number of features, and reads what lies behind the weights.
    features = any(isinstance(layer, nn.RNNBase) for layer in net.modules())
    found = []
    for axis in (None, *range(max((one.dim() for one in tensors), default=0))):
        what = "of the sizes of the example" if axis is None else f"of twice its size along axis {axis}"
        for made_args, made_kwargs in _tries(args, kwargs, axis, features):
            try:
                outputs = _call(net, made_args, made_kwargs)
            except Exception:  # noqa: S112  of a net that does not take them
                continue
            if not any(isinstance(one, Tensor) and bool(one.isnan().any()) for one in tree_leaves(outputs)):
                found.append(Variation(made_args, made_kwargs, outputs, what))
                break
    return found


def _tries(args: tuple, kwargs: dict[str, Any], axis: int | None, features: bool) -> Iterator[Any]:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    only_floats = all(one.is_floating_point() for one in tensors)
    for integers in ("left",) if only_floats else ("one more", "drawn", "permuted", "left"):
        make = Generator().manual_seed(SEED)
        yield tree_map(partial(_varied, make, axis, features, integers), (args, kwargs))


def _varied(make: Generator, axis: int | None, features: bool, integers: str, one: Any) -> Any:
    if not isinstance(one, Tensor):
        return one
    if axis is not None and axis < one.dim() - (features and one.is_floating_point()):
        one = torch.cat([one, one], axis)
    if one.is_floating_point():
        finite = one[one.isfinite()].double()
        scale = finite.std().item() if finite.numel() > 1 else 0.0
        return one + (scale or 1.0) * torch.randn(one.shape, generator=make).to(one.dtype)
    if integers == "left" or one.is_complex() or not one.numel():
        return one
    if integers == "permuted" or one.dtype == torch.bool:
        return one.flatten()[torch.randperm(one.numel(), generator=make)].reshape(one.shape)
    low, high = min(0, int(one.min())), int(one.max()) + 1
    high += integers == "one more" and bool((one == one.flatten()[0]).all())
    order = torch.randperm(one.numel(), generator=make)  # so that they differ
    return (low + order % (high - low)).reshape(one.shape).to(one.dtype)


def on_cpu(net: nn.Module) -> nn.Module:
    """A copy that may be run at will."""
    return copy.deepcopy(net).cpu()


def _call(net: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The net may change its inputs in place, draw random numbers, and warn of a size."""
    args, kwargs = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, (args, kwargs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(SEED)
        return net(*args, **kwargs)
