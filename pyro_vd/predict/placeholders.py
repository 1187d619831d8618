"""Replacements for values in a run of the model: those of the guide, samples that may be unused, noise under vmap."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_vd._torch import is_functorch_wrapped_tensor


class Given(Messenger):
    """Puts values at the sites of the guide, and at others what notes their use in ``used``, if that is given."""

    def __init__(self, values: dict[str, Any], used: list[str] | None = None):
        super().__init__()
        self.values, self.used = values, used

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
        elif self.used is not None and msg["value"] is None and not site_is_subsample(msg):
            msg["value"], msg["done"] = NotSampled(msg["name"], self.used), True


class ValueIsUsed(Exception):
    """Raised by an operation on a value that was not sampled."""


class NotSampled(Tensor):
    """Stands for a sample until something is done with it."""

    site: str
    used: list[str]

    @staticmethod
    def __new__(cls, site: str, used: list[str]) -> NotSampled:
        new = Tensor._make_subclass(cls, torch.empty(0))
        new.site, new.used = site, used
        return new

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, cls):
                one.used.append(one.site)
        raise ValueIsUsed


class BatchedNoise(TorchFunctionMode):
    """What distributions sample by, as operations that ``torch.vmap`` knows.

    ``torch.normal`` of two tensors is a product with ``randn``. ``torch.empty``, which distributions fill with noise in
    place, has a row for every draw: any numbers may be in it.

    Args:
        index: the number of the draw, under vmap.
    """

    def __init__(self, index: Tensor):
        super().__init__()
        self.index = index

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.normal and not kwargs and len(args) == 2 and all(isinstance(a, Tensor) for a in args):
            mean, std = args
            shape = torch.broadcast_shapes(mean.shape, std.shape)
            return mean + std * torch.randn(shape, dtype=mean.dtype, device=mean.device)
        if func is torch.empty and args and kwargs.keys() <= {"dtype", "device"}:
            shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            device = kwargs.get("device") or torch.get_default_device()
            return self.index.new_empty(shape, dtype=dtype, device=device)
        return func(*args, **kwargs)


class BatchedSites(Messenger):
    """Raises :class:`SharedNoise` where a site has the same sample in every draw, under vmap.

    Distributions that draw from NumPy, or from a generator of their own, make one sample for all draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not (msg["done"] or msg["is_observed"] or site_is_subsample(msg)):
            self.open.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] not in self.open:
            return
        fn, value = msg["fn"], msg["value"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if isinstance(fn, (Delta, Unit)) or isinstance(value, Tensor) and is_functorch_wrapped_tensor(value):
            return
        raise SharedNoise


class SharedNoise(Exception):
    """Raised by a sample that is the same in every draw of a block."""


def global_noise() -> tuple:
    """The states of the global generators of NumPy and Python."""
    state: Any = np.random.get_state()
    return state[0], state[1].tobytes(), *state[2:], random.getstate()


class LargestResult(TorchFunctionMode):
    """Notes the bytes of the largest result of an operation."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if type(result) is Tensor:
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result
