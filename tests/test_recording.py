"""Recording: every tensor a program reads is an input of the graph, writes reach it, random order is kept."""

from __future__ import annotations

import torch

from pyro_vd.recording import record

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
