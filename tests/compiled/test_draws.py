"""Draws are taken out of a recorded graph in their order, and the graph then computes what it did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vd.compiled.draws import take_out_draws

X = torch.arange(6.0).reshape(2, 3)


def recorded(function):
    return make_fx(functionalize(function), tracing_mode="fake")(X)


def run(graph, draws, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return graph(X, *[draw() for draw in draws])


FUNCTIONS = {
    "two like their input": (lambda x: torch.randn_like(x) * x + torch.rand_like(x[0]), 2),
    "of given shapes": (lambda x: x + torch.randn(2, 3) - torch.rand(3) + torch.randint(5, (3,)), 3),
    "in place": (lambda x: x + torch.empty(2, 3).normal_(1.0, 2.0) + torch.empty(3).uniform_(1, 2), 2),
    "a mask of a given rate": (lambda x: x * torch.empty(2, 3).bernoulli_(0.5), 1),
    "of a transposed layout": (lambda x: torch.randn_like(x.mT) @ x, 1),
    "a mask of a transposed layout": (lambda x: torch.empty_like(x.mT).bernoulli_(0.5) @ x, 1),
    "before one that depends on values": (lambda x: torch.randn_like(x) + torch.bernoulli(x.sigmoid()), 1),
    "after one that depends on values": (lambda x: torch.bernoulli(x.sigmoid()) + torch.randn_like(x), 0),
    "none": (lambda x: x + 1, 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_numbers_come_out_whatever_is_taken_out(name):
    function, number = FUNCTIONS[name]
    torch.manual_seed(0)
    expected = function(X)
    graph, draws, examples = take_out_draws(recorded(function))
    assert len(draws) == len(examples) == number
    assert torch.equal(run(graph, draws), expected)
    for draw, example in zip(draws, examples, strict=True):
        drawn = draw()
        assert (drawn.shape, drawn.stride(), drawn.dtype) == (example.shape, example.stride(), example.dtype)


def test_new_inputs_come_after_the_old_ones():
    graph, _, _ = take_out_draws(make_fx(lambda x, y: x + torch.randn_like(x) + y, tracing_mode="fake")(X, X))
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    assert names == ["x_1", "y_1", "noise_0"] and not [n for n in graph.graph.nodes if "randn" in str(n.target)]
