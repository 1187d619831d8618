"""Recording: every tensor a program reads is an input of the graph, writes reach it, random order is kept."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pyro_vd.compiled.recording import record

OUTSIDE = torch.tensor([1.0, 2.0, 3.0])


def test_outside_tensors_become_inputs_and_writes_reach_them():
    total = torch.zeros(3)

    def program(recorded, inputs, standing):
        with standing(recorded):
            total.add_(OUTSIDE * inputs[0])
            return [total.sum()]

    graph, tensors = record(program, [total], [torch.ones(3)])
    assert len(tensors) == 2 and tensors[0] is total and tensors[1] is OUTSIDE
    assert torch.equal(total, torch.zeros(3))  # recording computes nothing
    values = [torch.ones(3), torch.full((3,), 10.0), torch.full((3,), 2.0)]
    (result,) = graph(*values)
    assert result == 63.0
    assert torch.equal(values[0], torch.full((3,), 21.0))


def test_random_numbers_come_in_the_order_of_the_program():
    def program(recorded, inputs, standing):
        first, second = torch.randn_like(inputs[0]), torch.rand_like(inputs[0])
        return [second, first * inputs[0]]

    x = torch.full((4,), 2.0)
    graph, _ = record(program, [], [x])
    torch.manual_seed(5)
    second, first = graph(x)
    torch.manual_seed(5)
    assert torch.equal(first, 2 * torch.randn(4)) and torch.equal(second, torch.rand(4))


def test_arithmetic_of_scalars_is_taken_out_of_the_loops():
    def program(recorded, inputs, standing):
        rate, weight = recorded
        correction = 1 - rate**3
        return [weight * correction, weight / correction, correction / weight, weight - rate]

    tensors = [torch.tensor(0.3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    graph, _ = record(program, tensors, [])
    expected = program(tensors, [], None)
    for found, value in zip(graph(*tensors), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-14, atol=0.0)
    names = [str(node.target) for node in graph.graph.nodes]
    assert names.count("aten.stack.default") == 1
    for node in graph.graph.nodes:
        if node.op == "call_function" and "val" in node.meta and node.meta["val"].dim() == 1:
            scalars = [n for n in node.all_input_nodes if "select" not in str(n.target) and n.op == "call_function"]
            assert not [n for n in scalars if n.meta["val"].dim() == 0], node


@pytest.mark.parametrize("dtype, error", [(torch.float32, 6e-7), (torch.float64, 2e-15)], ids=str)
def test_softplus_and_sigmoid_are_recorded_as_arithmetic_in_full_precision(dtype, error):
    def program(recorded, inputs, standing):
        return [F.softplus(inputs[0], threshold=40.0), inputs[0].sigmoid()]

    x = torch.linspace(-80, 90, 20_001, dtype=dtype)
    graph, _ = record(program, [], [x])
    names = " ".join(str(node.target) for node in graph.graph.nodes)
    assert not any(name in names for name in ("softplus", "sigmoid", "log"))
    exact = x.double()
    log1p = torch.log1p(torch.exp(-exact.abs()))
    results = graph(x)
    torch.testing.assert_close(results[0].double(), exact.clamp(min=0) + log1p, rtol=error, atol=0)
    torch.testing.assert_close(results[1].double(), 1 / (1 + torch.exp(-exact)), rtol=error, atol=0)
    far = torch.tensor([-torch.inf, -200.0, 200.0, torch.inf, torch.nan], dtype=dtype)
    for result, expected in zip(graph(far), (F.softplus(far), far.sigmoid()), strict=True):
        torch.testing.assert_close(result, expected, rtol=error, atol=1e-30, equal_nan=True)


def test_softplus_of_another_kind_is_recorded_as_it_is():
    def program(recorded, inputs, standing):
        return [F.softplus(inputs[0], beta=2.0), F.softplus(inputs[0].half())]

    x = torch.linspace(-30, 30, 50)
    graph, _ = record(program, [], [x])
    for result, expected in zip(graph(x), program([], [x], None), strict=True):
        assert torch.equal(result, expected)
