"""Equal random operations are different draws: none is merged while a graph is recorded, and their order stays."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn import functional as F

from pyro_vd.compiled._compiler import is_random
from pyro_vd.compiled.recording import record

X = torch.linspace(0.2, 0.8, 6)
DRAWS = {
    "randn": lambda x: torch.randn(6),
    "rand": lambda x: torch.rand(6),
    "randint": lambda x: torch.randint(1000, (6,)),
    "randperm": lambda x: torch.randperm(6),
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "randint_like": lambda x: torch.randint_like(x, 1000),
    "normal": lambda x: torch.normal(x, 1.0),
    "normal of two": lambda x: torch.normal(x, x),
    "normal_": lambda x: torch.empty(6).normal_(),
    "uniform_": lambda x: torch.empty(6).uniform_(),
    "exponential_": lambda x: torch.empty(6).exponential_(),
    "cauchy_": lambda x: torch.empty(6).cauchy_(),
    "log_normal_": lambda x: torch.empty(6).log_normal_(),
    "geometric_": lambda x: torch.empty(6).geometric_(0.01),
    "bernoulli": lambda x: torch.bernoulli(x.expand(40, 6)),
    "poisson": lambda x: torch.poisson(100 * x),
    "multinomial": lambda x: torch.multinomial(x, 40, replacement=True),
    "dropout": lambda x: F.dropout(x.expand(40, 6), 0.5),
    "gamma": lambda x: torch._standard_gamma(x),
    "Normal.rsample": lambda x: dist.Normal(x, 1.0).rsample(),
    "Gamma.rsample": lambda x: dist.Gamma(x, 1.0).rsample(),
    "Dirichlet.rsample": lambda x: dist.Dirichlet(x).rsample(),
    "Beta.rsample": lambda x: dist.Beta(x, x).rsample(),
    "StudentT.rsample": lambda x: dist.StudentT(3 + x).rsample(),
    "Gumbel.rsample": lambda x: dist.Gumbel(x, 1.0).rsample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_two_equal_draws_are_two(name):
    def function(recorded, inputs, substitute):
        return [DRAWS[name](inputs[0]), DRAWS[name](inputs[0])]

    with torch.no_grad(), pyro.validation_enabled(False):  # as it is while a step is recorded
        graph, _ = record(function, [], [X])
        torch.manual_seed(5)
        first, second = graph(X)
        torch.manual_seed(5)
        expected = function([], [X], None)
    assert not torch.equal(first, second)
    torch.testing.assert_close([first, second], expected, rtol=1e-6, atol=0)


def test_every_operation_that_takes_a_generator_is_random():
    seen = 0
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            operation = getattr(packet, overload)
            if "Generator" in str(operation._schema) or torch.Tag.nondeterministic_seeded in operation.tags:
                seen += 1
                assert is_random(operation), operation
    assert seen == 0 or seen > 20  # dir lists what has been used so far
    assert is_random(torch.ops.aten.randn.default) and is_random(torch.ops.aten.normal_.default)
    assert not is_random(torch.ops.aten.add.Tensor)


def test_equal_arithmetic_is_computed_once_and_numbers_of_other_types_are_not_equal():
    def function(recorded, inputs, substitute):
        x = inputs[0]
        return [x.sin() * 2, x.sin() * 2, x * 1, x * 1.0, x * 0.0, x * -0.0]

    graph, _ = record(function, [], [torch.ones(3, dtype=torch.int64)])
    names = [str(node.target) for node in graph.graph.nodes]
    assert names.count("aten.sin.default") == 1
    results = graph(torch.ones(3, dtype=torch.int64))
    assert [result.dtype for result in results[2:4]] == [torch.int64, torch.float32]
    assert torch.signbit(results[5]).all() and not torch.signbit(results[4]).any()
