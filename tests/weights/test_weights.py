"""A random weight in the place of a tensor: operations without a rule, metadata, threads. All checks are exact."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import linear as linear_imported_by_name

from helpers.weights import random_weight, undrawn, weight
from pyro_vd.weights import views


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda w: w[torch.tensor([0, 0, 1])], "getitem"),
        (lambda w: w[[0, 0]], "getitem"),
        (lambda w: w.expand(4, 3, 3), "expand"),
        (lambda w: w * w, "mul"),
        (lambda w: torch.div(w, 2, rounding_mode="floor"), "div"),
        (lambda w: 2 / w, "r?(true)?div|reciprocal"),
        (lambda w: w + 1, "add"),
        (lambda w: w + torch.ones(3, 3), "add"),  # not broadcast over rows: no bias
        (lambda w: torch.ones(4, 1, 3) + w, "add"),
        (lambda w: w.sum(), "sum"),
        (lambda w: torch.cat([w, w]), "cat"),
        (lambda w: w.softmax(-1), "softmax"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operation_without_a_rule_uses_one_draw_and_says_so_once(operation, name):
    random = weight(3, 3)
    with pytest.warns(
        UserWarning, match=rf"site 'w'.*local.*got {name}; .*shared_sites=\['w'\].*strict=True"
    ) as caught:
        first = operation(random)
    assert len(caught) == 1 and type(first) is Tensor
    draw = random.materialize()
    torch.testing.assert_close(first, operation(draw), rtol=0, atol=0)
    # Coherent, and without another word, for the rest of the trace: other operations, views and linear ones.
    assert torch.equal(operation(random), first)
    assert torch.equal(random.exp(), draw.exp())
    x = torch.randn(5, 3).double()
    assert torch.equal(F.linear(x, random), F.linear(x, draw)) and torch.equal(x @ random.T, x @ draw.T)


REPEATS = {
    "mul": lambda w, x: w * x[:, None, :],
    "mul reflected": lambda w, x: x[:, None, :] * w,
    "mul keyword": lambda w, x: torch.mul(input=x[:, None, :], other=w),
    "mul rows of the weight": lambda w, x: w * torch.ones(4, 3, 3),
    "mul view": lambda w, x: w.T[:2] * x[:, None, :],
    "div": lambda w, x: w / x[:, None, :],
}


@pytest.mark.parametrize("operation", REPEATS.values(), ids=REPEATS)
def test_product_that_repeats_a_matrix_for_every_example_is_an_error(operation):
    random, x = weight(3, 3), torch.ones(4, 3).double()
    message = r"site 'w': expected \w+ with a factor that broadcasts.*for every example.*F.linear.*shared_sites=\['w'\]"
    with pytest.raises(ValueError, match=message):
        operation(random, x)
    assert undrawn(random)
    draw = random.materialize()  # one of the ways out
    torch.testing.assert_close(operation(random, x), operation(draw, x), rtol=0, atol=0)


def test_weight_of_whole_numbers_is_an_error_that_names_the_site():
    with pytest.raises(
        TypeError, match=r"site 'w': expected a random weight of floating point, got torch.int64.*float"
    ):
        random_weight(torch.ones(3, 3, dtype=torch.int64), torch.ones(3, 3))


def test_operation_without_a_rule_is_warned_of_once_for_all_traces_of_a_handler():
    warned: set = set()
    with pytest.warns(UserWarning) as caught:
        for _ in range(3):
            weight(3, 3, warned=warned).exp()
        weight(3, 3, warned=warned).sin()
        weight(3, 3, warned=warned, site="v").sin()
    assert len(caught) == 3


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda w: w.exp(), "exp"),
        (lambda w: torch.sum(w), "sum"),
        (lambda w: w[[0, 0]], "getitem"),
        (lambda w: w + 1, "r?add"),
        (lambda w: 1 - w, "r?sub"),
        (lambda w: w * w, "r?mul"),
        (lambda w: w @ w, "r?matmul"),
        (lambda w: w**2, "pow"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_strict_raises_and_names_the_site_for_functions_and_operators(operation, name):
    random = weight(3, 3, strict=True, reuse="independent")
    with pytest.raises(ValueError, match=rf"site 'w': expected an .*rule.*got {name}; .*shared_sites=\['w'\]"):
        operation(random)
    assert random.state.draw is None


def test_operation_after_a_local_use_is_a_second_use():
    random = weight(3, 3)
    F.linear(torch.ones(3).double(), random)
    with pytest.warns(UserWarning, match="exp"), pytest.raises(ValueError, match="second one in exp"):
        random.exp()


@pytest.mark.parametrize("name", ["input", "out", "no example"])
def test_forms_a_rule_does_not_cover_use_the_one_draw(name):
    random, x = weight(3, 3, estimator="per_example" if name == "no example" else "local"), torch.ones(2, 3).double()
    with pytest.warns(UserWarning, match="'w'.*(linear|addmm)"):
        if name == "input":
            y, expected = F.linear(random, x), random.materialize() @ x.T
        elif name == "out":
            y = torch.addmm(torch.zeros(3).double(), x, random, out=torch.zeros(2, 3).double())
            expected = x @ random.materialize()
        else:
            y, expected = F.linear(x[0], random), random.materialize() @ x[0]
    torch.testing.assert_close(y, expected)


def test_per_example_keeps_the_shape_for_a_vector_and_for_stacked_matrices():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether they have a rule or use one draw is free
        assert F.linear(torch.ones(4, 3).double(), weight(3, estimator="per_example")).shape == (4,)
        assert (torch.ones(5, 4, 3).double() @ weight(5, 3, 2, estimator="per_example")).shape == (5, 4, 2)


def name_of(function):
    return function.__self__.__name__ if function.__name__ == "__get__" else function.__qualname__


@pytest.mark.parametrize("function", sorted(views.METADATA, key=name_of), ids=name_of)
def test_metadata_neither_draws_nor_warns(function):
    random = weight(2, 3)
    expected = function(random.loc)
    assert function(random) == expected or "is_leaf" in str(function)
    assert undrawn(random)


def test_looking_at_a_weight_neither_draws_nor_warns():
    random = weight(2, 3)
    text = "RandomWeight(site='w', shape=(2, 3), estimator='local')"
    assert (random.shape, random.dtype, random.dim(), len(random)) == ((2, 3), torch.float64, 2, 2)
    assert (random.size(), random.size(1), random.numel(), random.device.type) == ((2, 3), 3, 6, "cpu")
    assert repr(random) == str(random) == text
    assert isinstance(random, Tensor) and torch.is_tensor(random) and hash(random) == hash(random)
    assert f"{random}" == text
    assert random.itemsize == 8 and random.is_cpu
    assert undrawn(random)


def test_operation_below_the_dispatch_on_types_is_an_error():
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(TypeError, match=r"site 'w'.*aten.mm.*materialize\(\)"):
        torch.mm(torch.ones(2, 3).double(), weight(3, 3))


def test_custom_autograd_function_is_an_error_not_a_lost_gradient():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, gradient):
            x, w = ctx.saved_tensors
            return gradient @ w.T, x.T @ gradient

    loc = torch.randn(3, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"site 'w'.*materialize\(\)"):
        Product.apply(torch.ones(2, 3, requires_grad=True), random_weight(loc, torch.ones(3, 3)))


def test_nothing_in_torch_is_patched_and_every_spelling_is_local():
    names = ("linear", "conv1d", "conv2d", "conv3d")
    before = [getattr(F, name) for name in names] + [torch.matmul, Tensor.__matmul__]
    x = torch.ones(2, 3).double()
    for call in (linear_imported_by_name, F.linear, lambda x, w: x @ w.T, lambda x, w: torch.mm(x, w.t())):
        y = call(x, weight(3, 3))
        assert (y[0] != y[1]).all()
        assert [getattr(F, name) for name in names] + [torch.matmul, Tensor.__matmul__] == before


def test_threads_with_and_without_random_weights_do_not_see_each_other():
    x, plain, failures = torch.ones(2, 3).double(), torch.randn(3, 3).double(), []

    def work(random: bool) -> None:
        for _ in range(300):
            y = F.linear(x, weight(3, 3) if random else plain)
            if bool((y[0] == y[1]).any()) == random:
                failures.append(random)

    threads = [threading.Thread(target=work, args=(random,)) for random in (True, False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("operation", ["addmm", "add"])
def test_bias_shared_by_output_units_is_no_local_bias(operation):
    # One element for all units of a row: its noise is one for them, which noise per output element is not.
    bias, x = weight(1, 1), torch.ones(2, 3).double()
    with pytest.warns(UserWarning, match="'w'.*add"):
        y = torch.addmm(bias, x, torch.eye(3).double()) if operation == "addmm" else x + bias
    assert torch.equal(y - x, bias.materialize().expand(2, 3))
