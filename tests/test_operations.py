"""The table of operations: every entry against weight space, in every layout, and how a rule of the user's enters it.

All checks are exact, but for one on the draws of a rule of the user's, which allows the standard errors of
``oracles.standard_errors``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import assert_standard_normal, random_weight
from operation_cases import CASES
from programs import run_locally
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

import pyro_vd as vd
import pyro_vd.weights
from pyro_vd.estimators import LinearOp, local, moments
from pyro_vd.operations.table import TABLE, check_signature

README = Path(__file__).parent.parent / "README.md"
WALKED = [pytest.param(case, kind, id=f"{name}, bias {kind}") for name, case in CASES.items() for kind in case.biases]
LAYOUTS = [parameters for parameters in WALKED if parameters.values[1] in ("none", "random", "only random")]
X = torch.randn(3, 5, 8)
NETS = {
    "attention": (lambda: nn.MultiheadAttention(8, 2), (X, X, X)),
    "LSTM": (lambda: nn.LSTM(8, 4), (X,)),
    "GRU": (lambda: nn.GRU(8, 4), (X,)),
    "RNN": (lambda: nn.RNN(8, 4), (X,)),
    "RNN relu": (lambda: nn.RNN(8, 4, nonlinearity="relu"), (X,)),
    "LSTMCell": (lambda: nn.LSTMCell(8, 4), (X[0],)),
    "GRUCell": (lambda: nn.GRUCell(8, 4), (X[0],)),
    "RNNCell": (lambda: nn.RNNCell(8, 4), (X[0],)),
    "RNNCell relu": (lambda: nn.RNNCell(8, 4, nonlinearity="relu"), (X[0],)),
}


class Looked(dict):
    """The table, noting which entries are found."""

    def __init__(self):
        super().__init__(TABLE)
        self.found = set()

    def get(self, key, default=None):
        if key in self:
            self.found.add(self[key])
        return super().get(key, default)


def seen_moments(monkeypatch) -> list:
    seen = []
    monkeypatch.setitem(pyro_vd.weights.SAMPLERS, "local", lambda op: seen.append(moments(op)) or local(op))
    return seen


@pytest.mark.parametrize("operation", [function for function, entry in TABLE.items() if entry.rule], ids=str)
def test_rules_have_the_parameters_of_their_operations(operation):
    check_signature(TABLE[operation].rule, operation, TABLE[operation].weights)


def test_every_entry_of_the_table_has_a_case(monkeypatch):
    looked = Looked()
    monkeypatch.setattr(pyro_vd.weights, "TABLE", looked)
    for case in CASES.values():
        x, weight, bias, _, _ = case.build(case.biases[-1])
        case.call(x, weight, bias)
    for make, args in NETS.values():
        run_locally(make(), *args, where="*weight*")
    missing = {entry.operations for entry in set(TABLE.values()) - looked.found}
    assert not missing, "an entry of the table needs a case in operation_cases.py, or a net here"


def test_readme_has_the_table_as_the_code_has_it():
    text = re.search(r"<!-- operations -->\n(.*?)\n\n", README.read_text(), re.S)
    assert text and text[1] == vd.operations_table(), "write the output of python -m pyro_vd.operations into README"


@pytest.mark.parametrize(("case", "kind"), LAYOUTS)
@pytest.mark.parametrize("layout", ["reversed", "channels last"])
def test_moments_do_not_depend_on_the_layout_in_memory(case, kind, layout, monkeypatch):
    x, weight, bias, mean, variance = case.build(kind)

    def laid_out(tensor: Tensor) -> Tensor:
        if layout == "reversed":
            axes = tuple(reversed(range(tensor.dim())))
            return tensor.permute(axes).contiguous().permute(axes)
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))

    if isinstance(weight, vd.RandomWeight):
        weight = random_weight(laid_out(weight.loc), laid_out(weight.variance))
    seen = seen_moments(monkeypatch)
    output = case.call(laid_out(x), weight, bias)
    ((got_mean, got_variance),) = seen
    assert output.shape == mean.shape
    torch.testing.assert_close(got_mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(got_variance, variance, rtol=0, atol=1e-10)


BATCHED = [case for case in CASES.values() if case.example is not None and "none" in case.biases]


@pytest.mark.parametrize("case", BATCHED, ids=lambda case: case.name)
def test_empty_batch_gives_an_empty_output_and_gradients_of_zero(case):
    x, weight, _, mean, _ = case.build("none")
    loc, variance = (tensor.requires_grad_() for tensor in (weight.loc, weight.variance))
    empty = x.narrow(case.example, 0, 0)
    output = case.call(empty, random_weight(loc, variance), None)
    shape = list(mean.shape)
    shape[case.draws_axis - 1] = 0
    assert list(output.shape) == shape
    for gradient in torch.autograd.grad(output.sum(), (loc, variance)):
        assert not gradient.to_dense().any()


@pytest.mark.parametrize("case", [case for name, case in CASES.items() if "plain" in name], ids=lambda case: case.name)
def test_variance_below_zero_from_a_fast_convolution_does_not_reach_the_root(case, monkeypatch):
    """Winograd and FFT algorithms return variances a little below 0 where it should be 0."""
    x, weight, bias, mean, _ = case.build("none")
    rule = TABLE[getattr(F, case.name.split()[0])]
    loc = weight.loc.requires_grad_()

    def below_zero(op: LinearOp) -> Tensor:
        apply = op.apply
        return local(vd.LinearOp(apply, op.x, op.weight, apply_variance=lambda x, v, b: apply(x, v, b) * 0 - 1e-9))

    monkeypatch.setitem(pyro_vd.weights.SAMPLERS, "local", below_zero)
    output = case.call(x, random_weight(loc, weight.variance), bias)
    torch.testing.assert_close(output, mean, rtol=0, atol=1e-12)
    assert torch.autograd.grad(output.sum(), loc)[0].isfinite().all() and rule.kind == "approximate"


def test_not_every_einsum_is_covered():
    x = torch.ones(4, 3).double()
    square = torch.rand(3, 3).double()
    for call in (
        lambda w: torch.einsum("bi,ii->bi", x, w),  # a diagonal
        lambda w: torch.einsum("io->oi", w),  # no other operand
        lambda w: torch.einsum("bi,io,ok->bk", x, w, w),  # the weight twice
    ):
        random = random_weight(square, square)
        with pytest.warns(UserWarning, match="got einsum;"):
            output = call(random)
        torch.testing.assert_close(output, call(random.materialize()), rtol=0, atol=1e-12)


def test_bag_of_maxima_is_not_linear_and_max_norm_is_refused():
    loc, index = torch.rand(4, 2).double(), torch.tensor([[0, 1], [2, 2]])
    with pytest.warns(UserWarning, match="got embedding_bag;"):
        F.embedding_bag(index, random_weight(loc, loc), mode="max")
    for operation in (F.embedding, F.embedding_bag):
        message = rf"site 'w': expected {operation.__name__} without max_norm, got max_norm=1.0.*shared_sites=\['w'\]"
        with pytest.raises(ValueError, match=message):
            operation(index, random_weight(loc, loc), max_norm=1.0)


def test_a_bag_that_holds_a_row_twice_has_four_times_its_variance(monkeypatch):
    seen = seen_moments(monkeypatch)
    F.embedding_bag(torch.tensor([[1, 1], [0, 1]]), random_weight(torch.zeros(2, 1), torch.ones(2, 1)), mode="sum")
    assert seen[0][1].flatten().tolist() == [4.0, 2.0]


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
