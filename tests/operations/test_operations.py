"""The table of operations: every entry against weight space, in every layout, and traced.

All checks are exact, but for those on unit noise, which allow the standard errors of ``oracles.standard_errors``.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_vd as vd
import pyro_vd.estimators
import pyro_vd.weights
from helpers.operation_cases import CASES
from helpers.oracles import assert_mean_close
from helpers.pages import DOCS
from helpers.programs import run_locally
from helpers.weights import random_weight, weight_of
from pyro_vd.estimators import LinearOp, local, moments
from pyro_vd.operations.table import TABLE, check_signature

WALKED = [pytest.param(case, kind, id=f"{name}, bias {kind}") for name, case in CASES.items() for kind in case.biases]
# A bias has one dimension, and no layout: each operation once; the second layout where there are planes or volumes.
LAYOUTS = [
    pytest.param(*parameters.values, layout, id=f"{parameters.id}-{layout}")
    for parameters in WALKED
    for layout in ("reversed", "channels last")
    if parameters.values[1] == ("none" if "none" in parameters.values[0].biases else "only random")
    and (layout == "reversed" or parameters.values[0].name.startswith("conv"))
]
X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(3))


class Experts(nn.Module):
    """Of the rows, the first goes to one matrix and the others to the third; PyTorch has no kernel in float64."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.grouped_mm(x, self.weight.mT, offs=torch.tensor([1, 1, len(x)], dtype=torch.int32))


NETS = {
    "experts": (Experts, (X[0],)),
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
    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", lambda op: seen.append(moments(op)) or local(op))
    return seen


@pytest.mark.parametrize(
    "operation", [function for function, entry in TABLE.items() if entry.rule], ids=lambda f: f.__name__
)
def test_rules_have_the_parameters_of_their_operations(operation):
    check_signature(TABLE[operation].rule, operation, TABLE[operation].weights)


def test_every_entry_of_the_table_has_a_case(monkeypatch):
    looked = Looked()
    monkeypatch.setattr(pyro_vd.weights.random_weight, "TABLE", looked)
    for case in CASES.values():
        x, weight, bias, _, _ = case.build(case.biases[-1])
        case.call(x, weight, bias)
    for make, args in NETS.values():
        run_locally(make(), *args, where="*weight*")
    missing = {entry.operations for entry in set(TABLE.values()) - looked.found}
    assert not missing, "an entry of the table needs a case in operation_cases.py, or a net here"


def test_the_page_has_the_table_as_the_code_has_it():
    text = re.search(r"<!-- operations -->\n(.*?)\n\n", (DOCS / "operations.md").read_text(), re.S)
    assert text and text[1] == vd.operations_table(), (
        "write the output of python -m pyro_vd.operations into docs/operations.md"
    )


@pytest.mark.parametrize(("case", "kind", "layout"), LAYOUTS)
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

    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", below_zero)
    output = case.call(x, random_weight(loc, weight.variance), bias)
    torch.testing.assert_close(output, mean, rtol=0, atol=1e-12)
    assert torch.autograd.grad(output.sum(), loc)[0].isfinite().all() and rule.kind == "approximate"


# A case whose bias is an argument of its own kind is traced without; a module registers parameters at its first call.
# Nor are tensors that a case holds beside its input: they would be no input of the trace.
HELD = ("module", "offsets", "bags", "weighted", "last offset", "three operands")
TRACED = [case for name, case in CASES.items() if "none" in case.biases and not any(word in name for word in HELD)]


@pytest.mark.parametrize("case", TRACED, ids=lambda case: case.name)
def test_rules_can_be_traced_without_a_look_at_values(case):
    x, weight, _, _, _ = case.build("none")

    def step(x: Tensor, loc: Tensor, variance: Tensor) -> Tensor:
        return case.call(x, random_weight(loc, variance), None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own tracer
        graph = make_fx(step, tracing_mode="fake")(x, weight.loc, weight.variance)
    results = []
    for run in (graph, step):
        torch.manual_seed(1)
        results.append(run(x, weight.loc, weight.variance))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_bags_cut_by_offsets_can_be_traced_with_offsets_of_another_cut():
    loc, variance = torch.randn(4, 2).double(), torch.rand(4, 2).double()
    index, weights = torch.tensor([0, 1, 1, 3, 3, 3]), torch.rand(6).double()

    def step(index: Tensor, offsets: Tensor, weights: Tensor, loc: Tensor, variance: Tensor) -> Tensor:
        weight = random_weight(loc, variance)
        return F.embedding_bag(index, weight, offsets, mode="sum", per_sample_weights=weights)

    def output_of(run, offsets: list[int]) -> Tensor:
        torch.manual_seed(1)
        return run(index, torch.tensor(offsets), weights, loc, variance)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = make_fx(step, tracing_mode="fake")(index, torch.tensor([0, 3]), weights, loc, variance)
    for offsets in ([0, 3], [0, 1], [0, 0]):
        torch.testing.assert_close(output_of(graph, offsets), output_of(step, offsets), rtol=1e-12, atol=1e-12)


def unit_weight(loc: Tensor, alpha: Tensor, unit_dim: int) -> vd.RandomWeight:
    posterior = vd.CorrelatedDropoutNormal(loc, alpha.log(), unit_dim=unit_dim)
    return weight_of(posterior.noise(), posterior.variance)


@pytest.mark.parametrize("unit_dim", [0, 1])
def test_unit_noise_of_a_transposed_convolution_has_the_covariance_of_weight_space(unit_dim):
    """W = s * loc with one s for each input or output channel, shared by all positions."""
    loc, alpha, x = torch.randn(2, 2, 2).double(), torch.tensor([0.5, 2.0]).double(), torch.randn(1, 2, 2).double()
    drawn = torch.stack([F.conv_transpose1d(x, unit_weight(loc, alpha, unit_dim)) for _ in range(4000)]).flatten(1)
    parts = []
    for unit in range(2):
        masked = torch.zeros_like(loc)
        masked.select(unit_dim, unit).copy_(loc.select(unit_dim, unit))
        parts.append(F.conv_transpose1d(x, masked).flatten())
    matrix = torch.stack(parts)
    deviation = drawn - F.conv_transpose1d(x, loc).flatten()
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], matrix.T @ alpha.diag() @ matrix)


def test_unit_noise_of_an_embedding_multiplies_its_outputs_and_has_no_local_form_for_its_rows():
    loc, alpha, index = torch.randn(3, 2).double(), torch.tensor([0.5, 2.0]).double(), torch.tensor([[0, 2]])
    drawn = torch.stack([F.embedding(index, unit_weight(loc, alpha, 1)) for _ in range(4000)]) - loc[index]
    assert_mean_close(drawn.square(), alpha * loc[index].square())
    rows = unit_weight(loc, torch.ones(3).double(), 0)
    with pytest.warns(UserWarning, match="got embedding;"):
        assert torch.equal(F.embedding(index, rows), rows.materialize()[index])


def test_unit_noise_of_a_bilinear_layer_has_no_local_form():
    with pytest.warns(UserWarning, match="got bilinear;"):
        F.bilinear(torch.ones(4, 2).double(), torch.ones(4, 3).double(),
                   unit_weight(torch.ones(5, 2, 3).double(), torch.ones(2).double(), 1))  # fmt: skip


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
