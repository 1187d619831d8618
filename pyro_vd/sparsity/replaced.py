"""Layers of a net replaced by others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import nn
from torch.nn.parameter import UninitializedParameter

from pyro_vd.common.options import shown


def is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a Linear, with weights, whose outputs are those of weight and bias alone: without hooks."""
    changed = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer) is nn.Linear and layer.weight.numel() > 0 and not changed


def check_linear(layer: Any, owner: str) -> nn.Linear:
    """The layer, or TypeError unless it is a Linear one; ValueError for one that has no shape yet."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(
            f"{owner}: expected linear to be a torch.nn.Linear, got {shown(layer)}; write {owner}(nn.Linear(3, 2)), or "
            f"{'to_csr' if owner == 'CSRLinear' else 'index_inputs'}(net) for the layers of a net"
        )
    if isinstance(layer.weight, UninitializedParameter):
        raise ValueError(f"{owner}: expected a layer with a shape, got a {type(layer).__name__}; call it on data first")
    return layer


def replace_layers(net: nn.Module, made: Mapping[str, nn.Module]) -> nn.Module:
    """``net`` with the layers at these paths replaced, under each of their names and in their modes."""
    if "" in made:
        return made[""].train(net.training)
    originals = [(net.get_submodule(path), layer) for path, layer in made.items()]
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            for original, layer in originals:
                if child is original:
                    setattr(parent, name, layer.train(original.training))
    return net
