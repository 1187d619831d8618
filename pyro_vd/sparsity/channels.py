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
from pyro_vd.sparsity.found import Found
from pyro_vd.sparsity.functions import CHANNELWISE, METADATA, NORMS, POOLING, name_of
from pyro_vd.sparsity.labels import UNIFORM, Product, Value, value_of
from pyro_vd.sparsity.recurrent import follow_sequences, one_state


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
        self.found = Found(net)
        self._folds = WeakTensorKeyDictionary()  # weights beside which a bias can take a constant
        for layer in net.modules():
            is_product = folding != "none" and isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
            if is_product and (layer.bias is not None or folding == "added"):
                self._folds[layer.weight] = True
        for weight in no_folding:
            self._folds.pop(weight, None)
        self._sizes_are_free = sizes_are_free

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self._see(name_of(func), output, args, kwargs)
        return output

    def _see(self, name: str, output: Any, args: tuple, kwargs: dict) -> None:
        if name in METADATA:
            return
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        value = None
        if isinstance(output, Tensor):
            value = self._rule(name, output, tensors, args, kwargs)
        if value is not None:
            self.found.seen[output] = value
        elif not follow_sequences(self.found, name, output, args, kwargs, self._sizes_are_free):
            self.found.unknown(tensors, output)

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
            x, value = tensors[0], self.found.seen.get(tensors[0])
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
        if name in ("softmax", "log_softmax") and (value := self.found.seen.get(tensors[0])) is not None:
            (dim,) = bound(args[1:], kwargs, "dim")
            found = (
                None if dim is None or dim % output.dim() == value.axis else self._channelwise(name, output, tensors)
            )
            return found and replace(found, constant=torch.zeros_like(found.constant))  # it depends on the sizes
        if name in MOVES and (value := self.found.seen.get(tensors[0]) or one_state(self.found, name, args)):
            return self._moved(name, output, tensors[0], value, args[1:], kwargs)
        return None

    def _product(
        self, output: Tensor, rows: int, columns: int, axis: int, border: bool, x: Tensor, weight: Tensor, bias: Any
    ) -> Value | None:
        if weight not in self.found.leaves or (bias is not None and bias not in self.found.leaves):
            return None
        for tensor in (weight,) if bias is None else (weight, bias):
            self.found.uses[tensor] = (self.found.uses.get(tensor) or 0) + 1
        outputs, inputs = self.found.of(weight, rows), self.found.of(weight, columns)
        if bias is not None:
            self.found.labels.join(outputs, self.found.of(bias, 0))
        nonzero = (weight != 0).movedim((rows, columns), (0, 1)).reshape(len(outputs), len(inputs), -1).any(-1).cpu()
        value = self.found.seen.get(x)
        if value is None or value.axis != axis:
            self.found.unknown(x)
            self.found.labels.need(inputs)
            return value_of(output, axis, outputs, ~nonzero.any(1))
        self.found.labels.join(value.labels, inputs)
        folds = weight in self._folds and not border
        live = nonzero & ~(value.constant & ((value.values == 0) | folds))
        self.found.products.append(Product(weight, bias, value, rows, columns, live))
        return value_of(output, axis, outputs, ~live.any(1))

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
        value = self.found.seen.get(x)
        one_each = x.shape[axis] == output.shape[axis] == groups
        if not one_each or value is None or value.axis != axis or weight not in self.found.leaves:
            return None
        leaves = [weight] if bias is None else [weight, bias]
        if any(leaf not in self.found.leaves for leaf in leaves):
            return None
        self.found.labels.join(value.labels, *(self.found.of(leaf, 0) for leaf in leaves))
        live = (weight != 0).flatten(1).any(1).cpu()
        constant = ~live | (value.constant & ((value.values == 0) | (not border)))
        return value_of(output, axis, value.labels, constant)

    def _embedding(self, name: str, output: Tensor, args: tuple, kwargs: dict) -> Value | None:
        tables = [one for one in args[:2] if isinstance(one, Tensor) and one in self.found.leaves]
        if len(tables) != 1 or kwargs.get("max_norm") is not None or kwargs.get("per_sample_weights") is not None:
            return None
        self.found.labels.need(self.found.of(tables[0], 0))  # of a table that is the weight of a Linear too
        labels = self.found.of(tables[0], 1)
        return value_of(output, output.dim() - 1, labels, (tables[0] == 0).all(0).cpu())

    def _channelwise(self, name: str, output: Tensor, tensors: list[Tensor]) -> Value | None:
        values = [self.found.seen[one] for one in tensors if one in self.found.seen]
        offsets = {value.axis - one.dim() for one in tensors if (value := self.found.seen.get(one)) is not None}
        if len(offsets) != 1 or len({len(value.labels) for value in values}) != 1:
            return None
        (offset,), labels = offsets, values[0].labels
        constant = torch.stack([value.constant for value in values]).all(0)
        self.found.labels.join(*(value.labels for value in values))
        for one in tensors:
            if one in self.found.seen:
                continue
            # Parameters of a normalisation or of PReLU have one dimension, that of the channels.
            dim = 0 if name in NORMS | {"prelu"} else one.dim() + offset
            if not 0 <= dim < one.dim() or one.shape[dim] == 1:
                constant = constant & (one in self.found.leaves)
            elif one in self.found.leaves and one.shape[dim] == len(labels):
                self.found.labels.join(labels, self.found.of(one, dim))
            else:
                self.found.labels.need(labels)
                constant = torch.zeros_like(constant)
        return value_of(output, output.dim() + offset, labels, constant)

    def _cat(self, output: Tensor, tensors: Any, dim: Any) -> Value | None:
        dim = (dim or 0) % output.dim()
        values = [self.found.seen.get(one) for one in tensors]
        if not any(values) or any(value is not None and value.axis != dim for value in values):
            return None
        parts = []
        for one, value in zip(tensors, values, strict=True):
            if value is None:  # an input of the net, say
                self.found.unknown(one)
                labels = self.found.labels.new(one.shape[dim])
                self.found.labels.need(labels)
                value = Value(dim, labels, torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels)))
            parts.append(value)
        labels = [label for part in parts for label in part.labels]
        constant = torch.cat([part.constant for part in parts])
        return value_of(output, dim, labels, constant)

    def _moved(self, name: str, output: Tensor, x: Tensor, value: Value, args: tuple, kwargs: dict) -> Value | None:
        """Channels that lie on another axis, are each spread over several places of one, or together are one."""
        found = place(name, x, value.axis, output, args, kwargs, self._sizes_are_free)
        if found is None:
            return None
        labels, constant = value.labels, value.constant
        if name == "sum":  # whose number of terms is a size of the example
            constant = constant & (value.values == 0)
        if found.together > 1:
            groups = [labels[i :: found.together] for i in range(found.together)]
            self.found.labels.join(*groups)
            labels, constant = groups[0], constant.unflatten(0, (-1, found.together)).all(1)
        labels = [label for label in labels for _ in range(found.repeats)]
        return value_of(output, found.axis, labels, constant.repeat_interleave(found.repeats))

    def _attention(self, output: Tensor, args: tuple, kwargs: dict) -> Value | None:
        """Each head by itself; zero values give zero."""
        query, key, value, mask = bound(args, kwargs, "query", "key", "value", "attn_mask")
        by_head = mask is not None and (mask in self.found.seen or (mask.dim() > 2 and mask.shape[-3] > 1))
        return None if by_head else self._stacked(output, (value,), query, key)

    def _stacked(self, output: Tensor, factors: tuple[Tensor, ...], *others: Tensor) -> Value | None:
        """Products of matrices that are stacked on the axis of channels; where a factor is zero, the output is."""
        axis = output.dim() - 3
        tensors = [one for one in (*factors, *others) if one.dim() == output.dim()]
        values = [value for one in tensors if (value := self.found.seen.get(one)) and value.axis == axis]
        if len(values) < len(factors) + len(others) or len({len(value.labels) for value in values}) != 1:
            return None
        self.found.labels.join(*(value.labels for value in values))
        zero = torch.stack([value.constant & (value.values == 0) for value in values[: len(factors)]]).any(0)
        return value_of(output, axis, values[0].labels, zero)
