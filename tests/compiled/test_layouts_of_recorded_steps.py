"""A recorded graph does not depend on the layout of a tensor in memory, which a compiler may change. Exact."""

from __future__ import annotations

import pytest
import torch

from pyro_vd.compiled.recording import record


@pytest.mark.parametrize("change", ["view", "reshape", "flatten", "unflatten"])
def test_a_graph_runs_on_a_tensor_of_another_layout(change):
    def program(recorded, inputs, standing):
        x = inputs[0] * 2  # (2, 3, 4), of the layout of the input
        return [{"view": lambda: x.view(6, 4), "reshape": lambda: x.reshape(6, 4), "flatten": lambda: x.flatten(1),
                 "unflatten": lambda: x.flatten().unflatten(0, (4, 6))}[change]()]  # fmt: skip

    example = torch.randn(2, 3, 4)
    graph, _ = record(program, [], [example])
    other = torch.empty(4, 3, 2).permute(2, 1, 0).copy_(example)
    assert other.stride() != example.stride()
    torch.testing.assert_close(graph(other)[0], graph(example)[0])
