"""Rewriting a recorded graph so that a compiler makes fewer and faster loops of it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from pyro_vd._torch import tree_flatten
from pyro_vd.compiled._compiler import is_random, writes

aten = torch.ops.aten
# Terms of the series of atanh(t) to t = 1 / 3, for full precision; in half precision exp(80) is infinite.
_DECOMPOSED = {torch.float32: 7, torch.float64: 15}


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``max(x, 0) + log1p(exp(-|x|))``, with the exponential of :func:`_sigmoid`, its gradient, and no logarithm.

    ``log1p(s) = 2 * atanh(t)`` with ``t = s / (2 + s) <= 1 / 3`` is a short series, which stays within a loop; a
    logarithm is a call of a function from within it, which is slower.
    """
    if x.dtype not in _DECOMPOSED or beta != 1:
        return NotImplemented
    r, w = _exponential(x)
    t = r.clamp(max=1.0) / (r.clamp(min=1.0) + w)
    *rest, series = (2.0 / (2 * k + 1) for k in range(_DECOMPOSED[x.dtype]))
    for coefficient in reversed(rest):
        series = series * (t * t) + coefficient
    return torch.where(x > threshold, x, x.clamp(min=0.0) + t * series)


def _sigmoid(x: Tensor) -> Tensor:
    if x.dtype not in _DECOMPOSED:
        return NotImplemented
    r, w = _exponential(x)
    return r * w.reciprocal()


def _exponential(x: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(x)`` and ``exp(x) + 1``, both finite."""
    r = x.clamp(max=80.0).exp()
    return r, r + 1.0


DECOMPOSITIONS: dict[Any, Callable] = {aten.softplus.default: _softplus, aten.sigmoid.default: _sigmoid}


def free_of_strides(graph: Graph) -> Graph:
    """Reshape where a view was recorded: a compiler may lay out the tensor so that it needs a copy (GPT-2's heads)."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    return graph


def merge_equal(graph: Graph) -> Graph:
    """Compute once what is computed twice: equal operations on equal arguments. Random draws are never equal."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if not _is_repeatable(node):
            continue
        leaves, structure = tree_flatten((node.args, node.kwargs))
        # By type and text: 1, 1.0 and True are equal numbers and different arguments, as 0.0 and -0.0 are.
        arguments = tuple(leaf if isinstance(leaf, Node) else (type(leaf), repr(leaf)) for leaf in leaves)
        first = seen.setdefault((node.target, structure, arguments), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    return graph


def _is_repeatable(node: Node) -> bool:
    """Whether an equal node has the same value: no random number, no write, nothing uninitialised."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    values = node.meta.get("val")
    tensors = values if isinstance(values, (tuple, list)) else [values]
    if writes(node.target) is not False or is_random(node.target) or not all(isinstance(v, Tensor) for v in tensors):
        return False
    return "empty" not in str(node.target)


def realize_scalars(graph: Graph) -> Graph:
    """Take the arithmetic of 0-dim inputs (a learning rate, bias corrections) out of the loops over tensors.

    A compiler would repeat it for every element. Stacked, it is computed once; and a tensor divided by one of its
    results is multiplied by the reciprocal.
    """
    scalars: dict[Node, None] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        derived = node.op == "call_function" and inputs and all(n in scalars for n in inputs) and _is_pure(node)
        if _is_scalar(node) and (node.op == "placeholder" or derived):
            scalars[node] = None
    computed = dict.fromkeys(node for node in scalars if node.op == "call_function")
    rest = [node for node in graph.nodes if node not in scalars and node.op != "placeholder"]
    wanted = dict.fromkeys(
        _use(n, user) for user in rest if _is_pure(user) for n in user.all_input_nodes if n in computed
    )
    if not wanted:
        return graph
    new, known = Graph(), {}
    for node in (*(node for node in graph.nodes if node.op == "placeholder"), *computed):
        known[node] = new.node_copy(node, known.__getitem__)
    realized = {}
    for dtype in {dtype for _, _, dtype in wanted}:
        uses = [use for use in wanted if use[2] == dtype]
        values = [known[n] if not divides else new.call_function(aten.reciprocal.default, (known[n],))
                  for n, divides, _ in uses]  # fmt: skip
        values = [new.call_function(aten.to.dtype, (value, dtype)) for value in values]
        stack = new.call_function(aten.stack.default, ([*values, values[0]],))  # a stack of one would vanish
        realized |= {use: new.call_function(aten.select.int, (stack, 0, i)) for i, use in enumerate(uses)}
    for node in rest:
        pure = _is_pure(node)

        def read(input: Node, node: Node = node, pure: bool = pure) -> Node:
            return realized[_use(input, node)] if pure and input in computed else known[input]

        known[node] = new.node_copy(node, read)
        if pure and any(_use(n, node)[1] for n in node.all_input_nodes if n in computed):
            known[node].target = aten.mul.Tensor
    return new


def _use(scalar: Node, node: Node) -> tuple[Node, bool, torch.dtype]:
    """How ``node`` uses a scalar: which one, whether it divides by it, in what precision."""
    divides = node.target is aten.div.Tensor and node.args[1] is scalar and node.args[0] is not scalar
    return scalar, divides, node.meta["val"].dtype


def _is_scalar(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()


def _is_pure(node: Node) -> bool:
    """Whether it is arithmetic on one tensor: no output, no write to a tensor, no random number."""
    value = node.meta.get("val")
    if writes(node.target) is not False or is_random(node.target):
        return False
    return isinstance(value, Tensor) and value.is_floating_point()
