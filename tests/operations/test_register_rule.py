"""A rule of the user's enters the same table as ours, and one that cannot be right is refused.

Exact, but for one test on draws, which allows the standard errors of ``oracles.standard_errors``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

import pyro_vd as vd
from helpers.weights import assert_standard_normal, random_weight
from pyro_vd.operations.table import TABLE


def my_linear(input: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """An operation that PyTorch does not know."""
    if has_torch_function((input, weight)):
        return handle_torch_function(my_linear, (input, weight), input, weight, scale=scale)
    return scale * torch.stack([input @ row for row in weight], -1)


@pytest.fixture
def table(monkeypatch):
    """The table, as it was, after the test."""
    before = dict(TABLE)
    yield TABLE
    TABLE.clear()
    TABLE.update(before)


def test_a_rule_of_the_user_s_enters_the_same_table_and_is_used(table):
    loc, scale = torch.randn(2, 2, 3).double()
    x = torch.randn(1, 3).double().expand(2, 3)
    with pytest.warns(UserWarning, match="site 'w'.*got my_linear;"):
        my_linear(x, random_weight(loc, scale.square()))

    @vd.register_rule(my_linear, weight="weight", drops="nothing at all")
    def rule(input, weight, scale=1.0):
        return vd.LinearOp(lambda x, w, bias: my_linear(x, w), scale * input, weight)

    drawn = torch.stack([my_linear(x, random_weight(loc, scale.square()), scale=3.0) for _ in range(400)])
    assert_standard_normal((drawn - 3 * x @ loc.T) / (9 * x.square() @ scale.square().T).sqrt())
    assert vd.operations_table().splitlines()[-1] == "| `my_linear` | `weight` | exact | nothing at all |"


def test_a_rule_may_compute_by_other_operations_and_may_replace_one_of_ours(table):
    vd.register_rule(my_linear)(lambda input, weight, scale=1.0: lambda: F.linear(input, scale * weight))
    y = my_linear(torch.ones(2, 3).double(), random_weight(torch.ones(2, 3).double(), torch.zeros(2, 3).double()), 2.0)
    torch.testing.assert_close(y, torch.full((2, 2), 6.0).double())
    vd.register_rule(F.linear)(lambda input, weight, bias=None: None)
    with pytest.warns(UserWarning, match="got linear;"):
        F.linear(torch.ones(2, 3), random_weight(torch.ones(2, 3), torch.ones(2, 3)))


SIGNATURES = {
    "another name": (F.linear, lambda input, kernel, bias=None: None, ("kernel",)),
    "another order": (F.linear, lambda weight, input, bias=None: None, ("weight",)),
    "too few": (F.linear, lambda input: None, ("input",)),
    "a default left out": (F.linear, lambda input, weight, bias: None, ("weight",)),
    "too many": (torch.mv, lambda input, vec, more: None, ("input",)),
    "of a method": (Tensor.mv, lambda self, other: None, ("self",)),
    "of one's own": (my_linear, lambda input, weight, bias: None, ("weight",)),
}


@pytest.mark.parametrize(("operation", "rule", "weight"), SIGNATURES.values(), ids=SIGNATURES)
def test_rule_with_another_signature_is_an_error_that_says_both(operation, rule, weight, table):
    before = dict(table)
    with pytest.raises(TypeError, match=r"register_rule: expected .*<lambda> to have the parameters of .*, got \("):
        vd.register_rule(operation, weight=weight)(rule)
    assert table == before


def test_other_mistakes_in_registering_a_rule_are_errors(table):
    def rule(input, weight, bias=None):
        return 3

    with pytest.raises(ValueError, match="expected the operations the rule is for, got none"):
        vd.register_rule()
    with pytest.raises(ValueError, match="kind to be 'exact' or 'approximate', got 'good'"):
        vd.register_rule(F.linear, kind="good")
    with pytest.raises(ValueError, match=r"weight to name parameters of .*rule, .*got \['kernel'\]"):
        vd.register_rule(F.linear, weight="kernel")(rule)
    with pytest.raises(TypeError, match="expected an operation to be a function, got 'linear'"):
        vd.register_rule("linear")(rule)
    vd.register_rule(F.linear)(rule)
    with pytest.raises(TypeError, match=r"rule .*rule for linear: expected a LinearOp.*got int; write return LinearOp"):
        F.linear(torch.ones(2, 3), random_weight(torch.ones(2, 3), torch.ones(2, 3)))
