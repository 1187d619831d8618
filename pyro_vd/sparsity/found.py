"""What is known of the channels of a net while it runs, and what follows from it for its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vd.sparsity.labels import Labels, Product


class Found:
    """Labels of the parameters and buffers of ``net``, and of the activations that were seen.

    Attributes:
        products: in the order of the run.
        uses: from a weight or bias to how many products take it.
        leaves: from a parameter or buffer to the labels of its dimensions.
        fixed: those that a function without a rule takes.
        seen: from an activation to its :class:`Value`.
        stacks: from the last states of a recurrent layer to a Value for each index of axis 0.
        levels: for each recurrent layer, the labels of its units by layer and direction.
    """

    def __init__(self, net: nn.Module):
        self.labels = Labels()
        self.products: list[Product] = []
        self.uses = WeakTensorKeyDictionary()
        self.leaves = WeakTensorKeyDictionary()
        self.fixed = WeakTensorKeyDictionary()
        self.seen = WeakTensorKeyDictionary()
        self.stacks = WeakTensorKeyDictionary()
        self.levels: list[list[list[int]]] = []
        for tensor in (*net.parameters(), *net.buffers()):
            self.leaves[tensor] = {}

    def of(self, leaf: Tensor, dim: int) -> list[int]:
        """The labels of a dimension of a parameter or buffer."""
        if dim not in self.leaves[leaf]:
            self.leaves[leaf][dim] = self.labels.new(leaf.shape[dim])
        return self.leaves[leaf][dim]

    def unknown(self, *trees: Any) -> None:
        """All channels of these tensors are needed, and nothing is known of what comes after."""
        for tensor in tree_leaves(trees):
            if isinstance(tensor, Tensor) and tensor in self.leaves:
                self.fixed[tensor] = True
            elif isinstance(tensor, Tensor):
                for value in (self.seen.pop(tensor, None), *self.stacks.pop(tensor, ())):
                    self.labels.need(value.labels if value else ())

    def finish(self, output: Any) -> None:
        """Look back from the outputs of the net, all of which are needed."""
        self.unknown(output)
        for tensor in self.fixed:
            for labels in self.leaves[tensor].values():
                self.labels.need(labels)
        for product in reversed(self.products):
            need = torch.tensor(self.labels.are_needed(self.leaves[product.weight][product.rows]))
            read = (product.live & need[:, None]).any(0)
            self.labels.need(label for label, one in zip(product.value.labels, read, strict=True) if one)

    def level(self) -> None:
        """Let the layers and directions of each recurrent layer keep as many units, since its sizes are one number."""
        short = True
        while short:
            short = False
            for level in self.levels:
                dead = [[unit for unit in units if not self.labels.are_needed([unit])[0]] for units in level]
                fewest = min(map(len, dead))
                for units in dead:
                    self.labels.need(units[fewest:])
                    short = short or len(units) > fewest

    def kept(self, tensor: Tensor, dim: int) -> Tensor:
        """Whether each index of a dimension of a parameter or buffer stays."""
        return torch.tensor(self.labels.are_needed(self.leaves[tensor][dim]), dtype=torch.bool)
