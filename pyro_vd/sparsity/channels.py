"""Which channels of a net are the same unit, which are constant, and which its outputs need: found by one run.

Every function that the net calls on the examples is seen once. Each channel of an activation, and each row and column
of a weight, has a label; labels that must go or stay together (the terms of a sum, a channel and its BatchNorm) are
joined. A function without a rule needs all channels of its arguments: what is not known stays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vd.sparsity.axes import MOVES, bound, place, several
from pyro_vd.sparsity.functions import CHANNELWISE, METADATA, NORMS, POOLING, RECURRENT, name_of
from pyro_vd.sparsity.labels import Labels, Product, Value, reachable

UNIFORM = 1e-6  # relative: a constant that is computed at several positions may round otherwise at each


class Channels(TorchFunctionMode):
    """Sees one run of a net.

    Args:
        net: in eval mode.
        no_folding: weights whose bias cannot take a constant of their input, since they are used more than once.
        sizes_are_free: take a view to a size given as a number as one that follows the channels.
        folding: which layers take constants into their biases: with "own" those that have one, with "added" also those
            that can be given one, with "none" no layer.
    """

    def __init__(self, net: nn.Module, no_folding: list[Tensor], sizes_are_free: bool, folding: str):
        super().__init__()
        self.labels = Labels()
        self.products: list[Product] = []
        self.uses = WeakTensorKeyDictionary()  # weight or bias -> how many products take it
        self.leaves = WeakTensorKeyDictionary()  # parameter or buffer -> {dimension: labels}
        self.fixed = WeakTensorKeyDictionary()  # those of them that a function without a rule takes
        for tensor in (*net.parameters(), *net.buffers()):
            self.leaves[tensor] = {}
        self._folds = WeakTensorKeyDictionary()  # weights beside which a bias can take a constant
        for layer in net.modules():
            is_product = folding != "none" and isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
            if is_product and (layer.bias is not None or folding == "added"):
                self._folds[layer.weight] = True
        for weight in no_folding:
            self._folds.pop(weight, None)
        self._sizes_are_free = sizes_are_free
        self._seen = WeakTensorKeyDictionary()  # activation -> Value

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self._see(name_of(func), output, args, kwargs)
        return output

    def finish(self, output: Any) -> None:
        """Look back from the outputs of the net, all of which are needed."""
        self._unknown(output)
        for tensor in self.fixed:
            for labels in self.leaves[tensor].values():
                self.labels.need(labels)
        for product in reversed(self.products):
            need = torch.tensor(self.labels.are_needed(self.leaves[product.weight][product.rows]))
            read = (product.live & need[:, None]).any(0)
            self.labels.need(label for label, one in zip(product.value.labels, read, strict=True) if one)

    def kept(self, tensor: Tensor, dim: int) -> Tensor:
        """Whether each index of a dimension of a parameter or buffer stays."""
        return torch.tensor(self.labels.are_needed(self.leaves[tensor][dim]), dtype=torch.bool)

    # One function of the run.

    def _unknown(self, *trees: Any) -> None:
        """All channels of these tensors are needed, and nothing is known of what comes after."""
        for tensor in tree_leaves(trees):
            if isinstance(tensor, Tensor) and tensor in self.leaves:
                self.fixed[tensor] = True
            elif isinstance(tensor, Tensor) and (value := self._seen.pop(tensor, None)) is not None:
                self.labels.need(value.labels)

    def _of(self, leaf: Tensor, dim: int) -> list[int]:
        """The labels of a dimension of a parameter or buffer."""
        if dim not in self.leaves[leaf]:
            self.leaves[leaf][dim] = self.labels.new(leaf.shape[dim])
        return self.leaves[leaf][dim]

    def _see(self, name: str, output: Any, args: tuple, kwargs: dict) -> None:
        if name in METADATA:
            return
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        value = None
        if isinstance(output, Tensor):
            value = self._rule(name, output, tensors, args, kwargs)
        found = {output: value} if value else self._recurrent(output, args) if name in RECURRENT else None
        if found is None:
            self._unknown(tensors, output)
        else:
            self._seen.update(found)

    def _rule(self, name: str, output: Tensor, tensors: list[Tensor], args: tuple, kwargs: dict) -> Value | None:
        if name == "linear":
            return self._product(output, 0, 1, output.dim() - 1, False, *bound(args, kwargs, "input", "weight", "bias"))
        if name.startswith("conv"):
            return self._convolution(name.startswith("conv_transpose"), output, args, kwargs)
        if name in ("embedding", "embedding_bag"):
            return self._embedding(name, output, args, kwargs)
        if name == "cat":
            return self._cat(output, *bound(args, kwargs, "tensors", "dim"))
        if name in NORMS | POOLING:
            x, value = tensors[0], self._seen.get(tensors[0])
            axis = x.dim() - int(name[-2]) - 1 if name[-1] == "d" else 1
            told = name != "instance_norm" or len(tensors) > 1  # without it the layer would warn of another size
            found = self._channelwise(name, output, tensors) if value and value.axis == axis and told else None
            if found is None or value is None or name in NORMS:
                return found
            # Padding has its part in an average at a border, which a small example may have everywhere.
            same = torch.isclose(found.values, value.values, rtol=UNIFORM, atol=UNIFORM)
            return replace(found, constant=found.constant & same)
        if name in CHANNELWISE:
            return self._channelwise(name, output, tensors)
        if name == "scaled_dot_product_attention":
            return self._attention(output, args, kwargs)
        if name == "matmul":
            return self._stacked(output, args[:2])
        if name in ("softmax", "log_softmax") and (value := self._seen.get(tensors[0])) is not None:
            (dim,) = bound(args[1:], kwargs, "dim")
            found = (
                None if dim is None or dim % output.dim() == value.axis else self._channelwise(name, output, tensors)
            )
            return found and replace(found, constant=torch.zeros_like(found.constant))  # it depends on the sizes
        if name in MOVES and tensors[0] in self._seen:
            return self._moved(name, output, tensors[0], args[1:], kwargs)
        return None

    def _product(
        self, output: Tensor, rows: int, columns: int, axis: int, border: bool, x: Tensor, weight: Tensor, bias: Any
    ) -> Value | None:
        if weight not in self.leaves or (bias is not None and bias not in self.leaves):
            return None
        for tensor in (weight,) if bias is None else (weight, bias):
            self.uses[tensor] = (self.uses.get(tensor) or 0) + 1
        outputs, inputs = self._of(weight, rows), self._of(weight, columns)
        if bias is not None:
            self.labels.join(outputs, self._of(bias, 0))
        nonzero = (weight != 0).movedim((rows, columns), (0, 1)).reshape(len(outputs), len(inputs), -1).any(-1).cpu()
        value = self._seen.get(x)
        if value is None or value.axis != axis:
            self._unknown(x)
            self.labels.need(inputs)
            return self._value(output, axis, outputs, ~nonzero.any(1))
        self.labels.join(value.labels, inputs)
        folds = weight in self._folds and not border
        live = nonzero & ~(value.constant & ((value.values == 0) | folds))
        self.products.append(Product(weight, bias, value, rows, columns, live))
        return self._value(output, axis, outputs, ~live.any(1))

    def _convolution(self, transposed: bool, output: Tensor, args: tuple, kwargs: dict) -> Value | None:
        names = ("input", "weight", "bias", "stride", "padding")
        names += ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        x, weight, bias, _, padding, *rest = bound(args, kwargs, *names)
        groups = rest[1] or 1
        axis = x.dim() - weight.dim() + 1
        border = padding not in (None, 0, "valid") and any(several(padding))
        border = border or transposed  # whose positions see other taps of the kernel each
        if groups == 1:
            rows, columns = (1, 0) if transposed else (0, 1)
            return self._product(output, rows, columns, axis, border, x, weight, bias)
        value = self._seen.get(x)
        one_each = x.shape[axis] == output.shape[axis] == groups
        if not one_each or value is None or value.axis != axis or weight not in self.leaves:
            return None
        leaves = [weight] if bias is None else [weight, bias]
        if any(leaf not in self.leaves for leaf in leaves):
            return None
        self.labels.join(value.labels, *(self._of(leaf, 0) for leaf in leaves))
        live = (weight != 0).flatten(1).any(1).cpu()
        constant = ~live | (value.constant & ((value.values == 0) | (not border)))
        return self._value(output, axis, value.labels, constant)

    def _recurrent(self, output: Any, args: tuple) -> dict[Tensor, Value] | None:
        """One layer in one direction; its units read each other, and are needed where one that reads them is."""
        x, states, weights, biased = args[:4]  # of packed sequences others
        if not isinstance(biased, bool) or len(weights) != (4 if biased else 2):  # more of them: layers, projections
            return None
        if any(one in self._seen for one in tree_leaves(states)) or not self._sizes_are_free:
            return None
        if any(one not in self.leaves or self.leaves[one] for one in weights):
            return None
        inputs, hidden = weights[:2]
        units, axis = self.labels.new(hidden.shape[1]), output[0].dim() - 1
        gates = len(hidden) // len(units)
        for one in weights:
            self.leaves[one][0], self.uses[one] = units * gates, 1
        self.leaves[hidden][1] = units
        columns, value = self._of(inputs, 1), self._seen.get(x)
        if value is None or value.axis != x.dim() - 1:
            self._unknown(x)
            self.labels.need(columns)
        else:
            self.labels.join(value.labels, columns)
            live = (inputs != 0).cpu() & ~(value.constant & (value.values == 0))
            self.products.append(Product(inputs, None, value, 0, 1, live))
        none = torch.zeros(len(units), dtype=torch.bool)
        state = Value(axis, units, none, torch.zeros(len(units)))
        read = reachable((hidden != 0).unflatten(0, (gates, -1)).any(0).cpu())
        self.products.append(Product(hidden, None, state, 0, 1, read.repeat(gates, 1)))
        return {one: replace(state, axis=one.dim() - 1) for one in tree_leaves(output)}

    def _embedding(self, name: str, output: Tensor, args: tuple, kwargs: dict) -> Value | None:
        tables = [one for one in args[:2] if isinstance(one, Tensor) and one in self.leaves]
        if len(tables) != 1 or kwargs.get("max_norm") is not None or kwargs.get("per_sample_weights") is not None:
            return None
        self.labels.need(self._of(tables[0], 0))  # of a table that is the weight of a Linear too
        labels = self._of(tables[0], 1)
        return self._value(output, output.dim() - 1, labels, (tables[0] == 0).all(0).cpu())

    def _channelwise(self, name: str, output: Tensor, tensors: list[Tensor]) -> Value | None:
        values = [self._seen[one] for one in tensors if one in self._seen]
        offsets = {value.axis - one.dim() for one in tensors if (value := self._seen.get(one)) is not None}
        if len(offsets) != 1 or len({len(value.labels) for value in values}) != 1:
            return None
        (offset,), labels = offsets, values[0].labels
        constant = torch.stack([value.constant for value in values]).all(0)
        self.labels.join(*(value.labels for value in values))
        for one in tensors:
            if one in self._seen:
                continue
            # Parameters of a normalisation or of PReLU have one dimension, that of the channels.
            dim = 0 if name in NORMS | {"prelu"} else one.dim() + offset
            if not 0 <= dim < one.dim() or one.shape[dim] == 1:
                constant = constant & (one in self.leaves)
            elif one in self.leaves and one.shape[dim] == len(labels):
                self.labels.join(labels, self._of(one, dim))
            else:
                self.labels.need(labels)
                constant = torch.zeros_like(constant)
        return self._value(output, output.dim() + offset, labels, constant)

    def _cat(self, output: Tensor, tensors: Any, dim: Any) -> Value | None:
        dim = (dim or 0) % output.dim()
        values = [self._seen.get(one) for one in tensors]
        if not any(values) or any(value is not None and value.axis != dim for value in values):
            return None
        parts = []
        for one, value in zip(tensors, values, strict=True):
            if value is None:  # an input of the net, say
                self._unknown(one)
                labels = self.labels.new(one.shape[dim])
                self.labels.need(labels)
                value = Value(dim, labels, torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels)))
            parts.append(value)
        labels = [label for part in parts for label in part.labels]
        constant = torch.cat([part.constant for part in parts])
        return self._value(output, dim, labels, constant)

    def _moved(self, name: str, output: Tensor, x: Tensor, args: tuple, kwargs: dict) -> Value | None:
        """Channels that lie on another axis, fill several places of an axis each, or are together one place."""
        value = self._seen[x]
        found = place(name, x, value.axis, output, args, kwargs, self._sizes_are_free)
        if found is None:
            return None
        labels, constant = value.labels, value.constant
        if name == "sum":  # whose number of terms is a size of the example
            constant = constant & (value.values == 0)
        if found.together > 1:
            groups = [labels[i :: found.together] for i in range(found.together)]
            self.labels.join(*groups)
            labels, constant = groups[0], constant.unflatten(0, (-1, found.together)).all(1)
        labels = [label for label in labels for _ in range(found.repeats)]
        return self._value(output, found.axis, labels, constant.repeat_interleave(found.repeats))

    def _attention(self, output: Tensor, args: tuple, kwargs: dict) -> Value | None:
        """Each head by itself; zero values give zero."""
        query, key, value, mask = bound(args, kwargs, "query", "key", "value", "attn_mask")
        by_head = mask is not None and (mask in self._seen or (mask.dim() > 2 and mask.shape[-3] > 1))
        return None if by_head else self._stacked(output, (value,), query, key)

    def _stacked(self, output: Tensor, factors: tuple[Tensor, ...], *others: Tensor) -> Value | None:
        """Products of matrices that are stacked on the axis of channels; where a factor is zero, the output is."""
        axis = output.dim() - 3
        tensors = [one for one in (*factors, *others) if one.dim() == output.dim()]
        values = [value for one in tensors if (value := self._seen.get(one)) and value.axis == axis]
        if len(values) < len(factors) + len(others) or len({len(value.labels) for value in values}) != 1:
            return None
        self.labels.join(*(value.labels for value in values))
        zero = torch.stack([value.constant & (value.values == 0) for value in values[: len(factors)]]).any(0)
        return self._value(output, axis, values[0].labels, zero)

    def _value(self, output: Tensor, axis: int, labels: list[int], constant: Tensor) -> Value:
        channels = output.detach().movedim(axis, 0).flatten(1)
        values = channels[:, 0] if channels.shape[1] else channels.new_zeros(len(labels))
        near = (channels - values[:, None]).abs() <= UNIFORM * (1 + values.abs()[:, None])
        return Value(axis, labels, constant & near.all(1).cpu(), values.clone().cpu())
