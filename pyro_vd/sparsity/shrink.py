"""A smaller net with the same outputs: units without incoming or outgoing weights are taken out."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vd.common.options import kind_of
from pyro_vd.sparsity.channels import Channels
from pyro_vd.sparsity.found import Found
from pyro_vd.sparsity.heads import without_dead_heads
from pyro_vd.sparsity.labels import Product
from pyro_vd.sparsity.prune import remove_masks
from pyro_vd.sparsity.variations import Variation, on_cpu, variations

TOLERANCE = 1e-5  # of the outputs, absolute and relative; 100 roundings of their type where that is more
VARIED_TOLERANCE = 1e-4  # of those for other inputs, which may be larger

Examples = Tensor | tuple | list | Mapping[str, Any]


def shrink(net: nn.Module, example_inputs: Examples) -> nn.Module:
    """A copy of ``net`` without its dead units, that computes the same in eval mode.

    A unit (a row of a Linear, a filter of a convolution, a column of an embedding) is dead where all its incoming
    weights are zero, or all outgoing ones. What a unit without incoming weights computes, ``relu(bias)`` say, is a
    constant and goes into the biases of the next layers. Units are followed through Linear, Conv1d/2d/3d,
    ConvTranspose1d/2d/3d, BatchNorm, Embedding and EmbeddingBag, elementwise functions, pooling, flattening, sums and
    concatenations, in any forward method: it is run once on the examples. Units that meet a function without a rule
    (LayerNorm, softmax over them, a grouped convolution that is not depthwise), and inputs and outputs of the net,
    stay. Layers keep their types and names. Heads of attention that is written in the forward method go as a whole,
    where their number is left open (``x.view(batch, length, -1, size)``).

    Of an LSTM, GRU or RNN go the units that no one reads: neither others that stay, nor the next layer, nor what comes
    after, of sequences that are packed or not. All its layers and directions have one size, so that each keeps as many
    as the one with the most. One with projections (``proj_size``) or with first states of a given size stays whole.
    Of its last states ``h[i]`` is followed, with a number ``i``; a view or a slice of them counts as read.

    A head of a MultiheadAttention is dead where the output does not read it, or its values have no weights; such a
    layer becomes one of a subclass, which does not return the weights of attention. At padded positions the outputs of
    a TransformerEncoder are then those of its training mode, where PyTorch's fast path has zeros.

    Args:
        net: any torch module; masks of ``torch.nn.utils.prune`` are made permanent in the copy.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments, as ``net`` takes them. All
            other inputs must take the same way through ``net``. The outputs are compared on it, and on others made
            from it, with noise and of twice its sizes, that ``net`` takes.

    Returns:
        The smaller net, in the modes of ``net``. Where a layer has no live unit it keeps one.

    Raises:
        ValueError: ``net`` does not take the examples, or gives nothing for them that can be compared, or the smaller
            net does not give its outputs (to 1e-5; for other inputs to 1e-4).
        TypeError: ``net`` is no torch module, or is a BayesianModule.

    Warns:
        UserWarning: a layer has no live unit: what comes after does not depend on what comes before.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[1:3].fill_(0.0)  # constants
        ...     _ = net[2].weight[:, 3].fill_(0.0)  # no one reads it
        >>> shrink(net, torch.ones(1, 3))
        Sequential(
          (0): Linear(in_features=3, out_features=1, bias=True)
          (1): ReLU()
          (2): Linear(in_features=1, out_features=2, bias=True)
        )

    See also:
        :func:`pyro_vd.prune`, :func:`pyro_vd.deploy`, :func:`pyro_vd.index_inputs`.
    """
    args, kwargs = as_call(example_inputs)
    plain = remove_masks(net, "shrink")
    modes = [layer.training for layer in plain.modules()]
    plain.eval()
    reference = call_net("shrink", plain, args, kwargs)
    problem = ""
    start, empty_heads = _without_heads(plain, args, kwargs, reference)
    others = variations(start, args, kwargs)
    # Where the forward method writes or reads a size, or reads a weight beside its layer, less can be removed.
    for folding, sizes_are_free in itertools.product(("added", "own", "none"), (True, False)):
        smaller = copy.deepcopy(start)
        empty = empty_heads + _take_out(smaller, _look(smaller, args, kwargs, sizes_are_free, folding))
        problem_here = _problem(smaller, args, kwargs, reference, others)
        if not problem_here:
            break
        problem = problem or problem_here
    else:
        raise ValueError(
            f"shrink: expected the outputs of the net without its dead units to be those of the net, got {problem}; "
            "the net uses its units in a way that cannot be followed (a custom autograd function, a scripted part, "
            "random numbers in eval mode, a number computed from the size of an activation); shrink its parts: "
            "net.part = shrink(net.part, inputs_of_the_part)"
        )
    if empty:
        warnings.warn(
            f"shrink: expected a live unit in every layer, got none in {', '.join(map(repr, empty))}, which keep one: "
            "what comes after does not depend on what comes before; prune less",
            stacklevel=2,
        )
    for layer, mode in zip(smaller.modules(), modes, strict=True):
        layer.training = mode
    return smaller


def as_call(example_inputs: Examples) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of a call."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs), {}) if isinstance(example_inputs, (tuple, list)) else ((example_inputs,), {})


def call_net(caller: str, net: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The outputs of ``net`` without gradients; an error that names the examples where it does not take them."""
    try:
        with torch.no_grad():
            outputs = net(*args, **kwargs)
    except Exception as error:
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else kind_of(one) for one in tree_leaves((args, kwargs))]
        raise ValueError(
            f"{caller}: expected example_inputs that the net takes, got {shapes}: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}; pass a tensor, a tuple of arguments or a mapping of keyword arguments"
        ) from error
    found = [one for one in tree_leaves(outputs) if isinstance(one, Tensor)]
    if not any((one == one).any() for one in found if not one.is_meta):
        kinds = [f"{kind_of(one)}, shape {tuple(one.shape)}" if isinstance(one, Tensor) else kind_of(one)
                 for one in tree_leaves(outputs)]  # fmt: skip
        raise ValueError(
            f"{caller}: expected outputs to compare, tensors with an element that is not NaN, got {kinds}; pass "
            "examples of a batch that is not empty, without NaN, to a net that returns tensors"
        )
    return outputs


@torch.no_grad()
def _without_heads(net: nn.Module, args: tuple, kwargs: dict[str, Any], reference: Any) -> tuple[nn.Module, list[str]]:
    """The net without dead heads, and the names of attentions that keep one; as it is where their weights are read."""
    fewer, empty = without_dead_heads(net)
    try:
        return (net, []) if difference(fewer(*args, **kwargs), reference) else (fewer, empty)
    except Exception:  # the net may do anything with a weight of attention that is None
        return net, []


@torch.no_grad()
def _problem(net: nn.Module, args: tuple, kwargs: dict[str, Any], reference: Any, others: list[Variation]) -> str:
    """What is wrong with the outputs of a smaller net, for the example and other inputs; empty where nothing is."""
    try:
        problem = difference(net(*args, **kwargs), reference)
        if problem or not others:
            return problem
        net = on_cpu(net)
        for other in others:
            if found := difference(other.call(net), other.outputs, VARIED_TOLERANCE):
                return f"{found}, for inputs {other.what}"
        return ""
    except Exception as error:  # the net may do anything with fewer units
        return f"a failure ({str(error).partition(chr(10))[0]})"


@torch.no_grad()
def _look(net: nn.Module, args: tuple, kwargs: dict[str, Any], sizes_are_free: bool, folding: str) -> Found:
    """The channels of ``net``; biases that serve several products take no constants."""
    no_folding: list[Tensor] = []
    while True:
        channels = Channels(net, no_folding, sizes_are_free, folding)
        buffers = [(module._buffers, dict(module._buffers)) for module in net.modules()]
        with channels:
            output = net(*args, **kwargs)
        for now, before in buffers:
            now.update(before)  # where the net has assigned others
        channels.found.finish(output)
        several = [
            product.weight
            for product in channels.found.products
            if any(
                t is not None and (channels.found.uses[t] > 1 or t in channels.found.fixed)
                for t in (product.weight, product.bias)
            )
        ]
        if len(several) == len(no_folding):
            return channels.found
        no_folding = several


@torch.no_grad()
def _take_out(net: nn.Module, found: Found) -> list[str]:
    """Slice parameters and buffers to what is kept; the names of weights of which nothing would have been left."""
    empty = []
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        for dim, labels in found.leaves[tensor].items():
            if labels and not found.kept(tensor, dim).any():
                empty += [name] * (tensor.dim() > 1)
                found.labels.need(labels[:1])
    found.level()
    smaller, added = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
    for product in found.products:
        shift = _shift(product, found)
        if shift is None:
            continue
        if product.bias is None:
            added[product.weight] = nn.Parameter(shift[found.kept(product.weight, product.rows).to(shift.device)])
        else:
            smaller[product.bias] = product.bias.detach() + shift
    for tensor, dims in found.leaves.items():
        value = smaller[tensor] if tensor in smaller else tensor.detach()
        for dim in dims:
            value = value.index_select(dim, found.kept(tensor, dim).nonzero()[:, 0].to(value.device))
        is_parameter = isinstance(tensor, nn.Parameter)
        smaller[tensor] = nn.Parameter(value.clone(), tensor.requires_grad) if is_parameter else value
    for layer in net.modules():
        bias = added.get(getattr(layer, "weight", None)) if isinstance(layer, (nn.Linear, _ConvNd)) else None
        for held in (layer._parameters, layer._buffers):
            for key, tensor in held.items():
                if tensor is not None and found.leaves[tensor]:
                    held[key] = smaller[tensor]
        if bias is not None:
            layer.bias = bias
        _describe(layer)
    return list(dict.fromkeys(empty))


def _shift(product: Product, found: Found) -> Tensor | None:
    """What the constants that are taken out add to the output of a product; None where they add nothing."""
    gone = ~found.kept(product.weight, product.columns) & product.value.constant
    gone &= product.value.values != 0
    if not gone.any():
        return None
    weight = product.weight.detach().movedim((product.rows, product.columns), (0, 1))
    weight = weight.reshape(*weight.shape[:2], -1).sum(-1)
    shift = weight[:, gone.to(weight.device)] @ product.value.values[gone].to(weight)
    return shift if shift.any() else None


def _describe(layer: nn.Module) -> None:
    """Set the sizes that a layer states to those of its weight."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, _NormBase):
        own = weight if weight is not None else layer.running_mean
        layer.num_features = layer.num_features if own is None else len(own)
    elif isinstance(layer, nn.RNNBase):
        if layer.proj_size:
            return
        for key, parameter in list(layer._parameters.items()):
            setattr(layer, key, parameter)  # its list of weights follows
        for size, name in (("hidden_size", "weight_hh_l0"), ("input_size", "weight_ih_l0")):
            setattr(layer, size, getattr(layer, name).shape[1])
    elif not isinstance(weight, Tensor):
        return
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        layer.embedding_dim = weight.shape[1]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(weight)
    elif isinstance(layer, _ConvNd):
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = layer.in_channels = layer.out_channels = len(weight)
        elif layer.groups == 1:
            inputs, outputs = (0, 1) if isinstance(layer, _ConvTransposeNd) else (1, 0)
            layer.in_channels, layer.out_channels = weight.shape[inputs], weight.shape[outputs]


def difference(output: Any, reference: Any, tolerance: float = TOLERANCE) -> str:
    """What is wrong with an output, in words; empty where nothing is."""
    ours, theirs = tree_leaves(output), tree_leaves(reference)
    if len(ours) != len(theirs):
        return f"{len(ours)} outputs for {len(theirs)}"
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(other, Tensor):
            continue
        if not isinstance(one, Tensor):
            return f"an output of type {type(one).__name__} for a tensor"
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"an output of shape {tuple(one.shape)} for {tuple(other.shape)}"
        close = max(tolerance, 100 * torch.finfo(other.dtype).eps) if other.is_floating_point() else 0.0
        if not torch.allclose(one, other, rtol=close, atol=close, equal_nan=True):
            return f"outputs up to {(one - other).abs().max().item():.3g} apart"
    return ""
