"""Random numbers of a recorded graph: drawn before its compiled part, in the order in which they were recorded.

A compiler may move two draws past one another where neither reads the other's result: then each gets the numbers of the
other, and the compiled step is not the eager one. PyTorch 2.11 does so on CPUs and GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_vd.compiled._compiler import is_random

aten = torch.ops.aten

# What these draw depends on the shape of their first argument, not on its values.
_LIKE = {
    aten.randn_like.default, aten.rand_like.default, aten.normal_functional.default, aten.uniform.default,
    aten.bernoulli.p, aten.exponential.default, aten.geometric.default, aten.log_normal.default, aten.cauchy.default,
}  # fmt: skip

Draw = Callable[[], Tensor]


def take_out_draws(graph: GraphModule) -> tuple[GraphModule, list[Draw], list[Tensor]]:
    """The graph with its draws for inputs, after those it has.

    Only draws that depend on no value of a tensor can be taken out, and none that comes after another kind, which would
    have its place in the order changed.

    Args:
        graph: a functional graph of ATen operations. It is changed.

    Returns:
        The graph; for each new input a function that draws it; and for each a tensor of its kind, without values.
    """
    draws, examples = [], []
    *_, last = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node in [node for node in graph.graph.nodes if node.op == "call_function" and is_random(node.target)]:
        draw = _draw(node)
        if draw is None:
            break
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"noise_{len(draws)}")
        value = node.meta["val"]
        last.meta = {"val": value}
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
        draws.append(draw)
        examples.append(_empty_like(value))
    graph.recompile()
    return graph, draws, examples


def _draw(node: Node) -> Draw | None:
    """A function that draws what ``node`` does; None where that depends on values."""
    target: Any = node.target
    if not isinstance(node.meta.get("val"), Tensor):
        return None
    rest: list[Any]
    first, *rest = node.args or (None,)
    if target in _LIKE and isinstance(first, Node) and not any(isinstance(one, Node) for one in rest):
        like = first.meta["val"]
        if target is aten.bernoulli.p:  # recorded of bernoulli_ (dropout), which fills a transposed tensor as it lies
            made = node.meta["val"]
            return lambda: _empty_like(made).copy_(_empty_like(like).bernoulli_(*rest, **node.kwargs))
        return lambda: target(_empty_like(like), *rest, **node.kwargs)
    if node.all_input_nodes:
        return None
    args, kwargs = node.args, dict(node.kwargs)
    return lambda: target(*args, **kwargs)


def _empty_like(value: Tensor) -> Tensor:
    """A tensor of the size, strides, dtype and device of a recorded one."""
    return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device=value.device)
