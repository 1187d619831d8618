"""What the modules of a net hold, and how they get it back after a call that has put other weights in.

Layers keep weights in attributes too: a mask or an old-style norm keeps what its hook computes, a recurrent
layer keeps a list of all its weights.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from pyro_vd.rollback import MISSING, note_entry, refill, restore_entry

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Held:
    """What one module holds before a call."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.attributes = dict(vars(module))
        self.parameters = module._parameters
        self.buffers = list(module._buffers.items())
        self.containers: list[tuple[Any, Any]] = []  # written to in place: the list of weights of a recurrent layer
        for key in self.attributes.keys() - _OF_EVERY_MODULE:
            value = self.attributes[key]
            if type(value) in (list, dict) and _may_hold_tensors(value):
                self.containers.append((value, copy.copy(value)))

    def put_back(self, is_value: Callable[[Any], bool], keep: bool, exchanged: bool = False) -> list[Tensor]:
        """Put back the parameters, and every attribute that holds a value or a weight made of one.

        Args:
            is_value: whether a tensor is one of the values.
            keep: leave other attributes as the call has set them, for whoever reads them.
            exchanged: leave parameters that others have put there meanwhile, as FSDP2 does when a backward pass ends.

        Returns:
            The tensors that were left.
        """
        now, before, left = vars(self.module), self.attributes, []
        table, own = now["_parameters"], self.parameters
        if table is not own:
            made = {}
            for key, new in table.items():
                if key not in own or (
                    exchanged and new is not own[key] and isinstance(new, nn.Parameter) and not is_value(new)
                ):
                    made[key] = new
            now["_parameters"] = own
            own.update(made)  # by the net itself, in its first call
        same = len(now) == len(before) and all(map(is_, now.values(), before.values())) and list(now) == list(before)
        if same and not self.containers:
            return left
        changed = [
            (key, self.attributes.get(key, MISSING), new)
            for key, new in now.items()
            if self.attributes.get(key, MISSING) is not new
        ]
        weights = [new for key, old, new in changed if self._is_weight(key, old, new)]

        def is_ours(tensor: Tensor) -> bool:
            return is_value(tensor) or any(tensor is weight for weight in weights)

        for key, old, new in changed:
            tensors = tensors_in(new)
            if any(map(is_ours, tensors)) or (not keep and (tensors or tensors_in(old))):
                restore_entry(now, key, old)
            elif tensors or tensors_in(old):
                note_entry(now, key, old)
                left += tensors
        for container, content in self.containers:
            tensors = tensors_in(container)
            if any(map(is_ours, tensors)) or (not keep and tensors):
                refill(container, content)
        return left

    def put_back_buffers(self, keep: bool) -> dict[Tensor, Tensor]:
        """Put back the module's own buffers; returns what the call has made of them."""
        now, updates = self.module._buffers, {}
        for key, own in self.buffers:
            new = now.get(key)
            if own is None or new is own:
                continue
            if isinstance(new, Tensor) and (new.shape, new.dtype) == (own.shape, own.dtype):
                updates[own] = new
            elif keep:
                note_entry(now, key, own)  # one that grows
                continue
            now[key] = own
        return updates

    def _is_weight(self, key: str, old: Any, new: Any) -> bool:
        """Whether an attribute is a weight that a hook computes from parameters: of a mask, an old-style norm."""
        if not isinstance(old, Tensor) or not isinstance(new, Tensor) or old.shape != new.shape:
            return False
        return bool(self.module._forward_pre_hooks) or any(
            own is not None and name.startswith(f"{key}_") and own.shape == new.shape
            for name, own in self.parameters.items()
        )


def modules_of(net: nn.Module) -> list[nn.Module]:
    """The net and every module in it, each once."""
    found, waiting = {net: None}, [net]  # faster than nn.Module.modules(), which makes names
    while waiting:
        for child in waiting.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def copied(net: nn.Module) -> nn.Module:
    """A deep copy; also where an attribute is not a leaf of autograd, which ``copy.deepcopy`` refuses."""
    memo: dict[int, Any] = {}
    for module in modules_of(net):
        for tensor in tensors_in(list(vars(module).values())):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(net, memo)


@torch.no_grad()
def refresh_derived_weights(net: nn.Module) -> None:
    """Compute the weights again that masks and old-style weight norm keep in attributes."""
    for module in modules_of(net):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (BasePruningMethod, WeightNorm)):
                hook(module, ())


def tensors_in(value: Any, depth: int = 3) -> list[Tensor]:
    """The tensors in an output or an attribute: in containers, and in objects such as distributions."""
    if isinstance(value, weakref.ref):
        value = value()
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or callable(value):  # modules too
        return []
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_in(part, depth - 1)]


def _may_hold_tensors(container: list | dict) -> bool:
    """False for a vocabulary, which may be long."""
    first = next(iter(container.values() if isinstance(container, dict) else container), None)
    return not isinstance(first, (str, bytes, int, float))
