"""A random weight in the place of a tensor: views, second uses, operations without a rule, metadata, threads.

All checks are exact, but for the two on reuse: they allow the standard errors of ``oracles.standard_errors`` and fail
by chance with probability 1e-6.
"""

from __future__ import annotations

import threading
import tracemalloc
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import assert_standard_normal, random_weight
from oracles import assert_mean_close
from torch import Tensor
from torch.nn.functional import linear as linear_imported_by_name

import pyro_vd as vd
from pyro_vd.weights import views

MASK = torch.tensor([[[1.0, 0.0, 2.0, -1.0]], [[0.0, 1.0, 3.0, 0.5]]]).double()  # broadcasts with (2, 3, 4)
SCALAR = torch.tensor(-1.5).double()
T = Tensor

# Every function of the table of views, with arguments for a weight of shape (2, 3, 4).
VIEWS = {
    T.T.__get__: (), T.mT.__get__: (), T.t: (), torch.t: (), T.transpose: (0, 2), torch.transpose: (0, 1),
    T.swapaxes: (0, 1), torch.swapaxes: (0, 1), T.swapdims: (1, 2), torch.swapdims: (1, 2), T.adjoint: (),
    torch.adjoint: (), T.permute: (2, 0, 1), torch.permute: ((1, 0, 2),), T.movedim: (0, 2), torch.movedim: (0, 1),
    T.reshape: (4, 6), torch.reshape: ((6, -1),), T.view: (3, 8), T.view_as: (torch.zeros(6, 4),),
    T.reshape_as: (torch.zeros(12, 2),), T.flatten: (1,), torch.flatten: (), T.unflatten: (2, (2, 2)),
    torch.unflatten: (0, (1, 2)), T.ravel: (), torch.ravel: (), T.squeeze: (), torch.squeeze: (), T.unsqueeze: (0,),
    torch.unsqueeze: (1,), T.contiguous: (), T.narrow: (1, 1, 2), torch.narrow: (2, 0, 3), T.select: (1, 2),
    torch.select: (0, 1), T.chunk: (2, 1), torch.chunk: (2, 2), T.split: (2, 1), torch.split: ([1, 3], 2),
    T.tensor_split: (2, 2), torch.tensor_split: ((1,), 1), T.unbind: (), torch.unbind: (1,), T.flip: (0,),
    torch.flip: ((1, 2),), T.detach: (), torch.detach: (), T.clone: (), torch.clone: (), T.diagonal: (0, 1, 2),
    torch.diagonal: (), T.to: (torch.float32,), T.float: (), T.double: (), T.half: (), T.bfloat16: (),
    T.type_as: (torch.zeros(1),), T.cpu: (), torch.mul: (2.0,), torch.multiply: (MASK,), T.mul: (SCALAR,),
    T.multiply: (0.5,), T.__mul__: (MASK[0],), T.__rmul__: (3,), torch.div: (2,), torch.divide: (SCALAR,),
    torch.true_divide: (4.0,), T.div: (MASK + 5,), T.divide: (2,), T.true_divide: (-3,), T.__truediv__: (SCALAR,),
    torch.neg: (), torch.negative: (), T.neg: (), T.negative: (), T.__neg__: (),
}  # fmt: skip
TWO_DIMENSIONS = {T.t, torch.t, T.T.__get__}
INDICES = {
    "row": (1,), "rows": (slice(1, None),), "step": (slice(None), slice(None, None, 2)), "ellipsis": (..., 0),
    "new axis": (None, 1, ..., slice(1, 3)), "element": (1, 2, 3),
}  # fmt: skip


def weight(*shape: int, **options) -> vd.RandomWeight:
    loc, scale = torch.randn(2, *shape, dtype=torch.float64)
    return random_weight(loc, scale.square(), **options)


def undrawn(random: vd.RandomWeight) -> bool:
    return random.state.draw is None and not random.state.used


def check_view(random: vd.RandomWeight, view) -> None:
    """The moments of the view are those of its dense matrix, and its draw is the view of the one draw."""
    size = random.numel()
    units = torch.eye(size).double().reshape(size, *random.shape)
    parts = view(random)
    for i, part in enumerate(parts if isinstance(parts, tuple) else (parts,)):

        def of(tensor: Tensor, i=i) -> Tensor:
            return view(tensor)[i] if isinstance(parts, tuple) else view(tensor)

        assert isinstance(part, vd.RandomWeight) and undrawn(random)
        matrix = torch.stack([of(unit).flatten() for unit in units], 1).double()
        tolerance = {"rtol": 0, "atol": {torch.float64: 1e-12, torch.float32: 1e-6}.get(part.loc.dtype, 5e-2)}
        assert part.shape == part.loc.shape == part.variance.shape == of(random.loc).shape
        torch.testing.assert_close(part.loc.flatten().double(), matrix @ random.loc.flatten(), **tolerance)
        variance = matrix.square() @ random.variance.flatten()
        torch.testing.assert_close(part.variance.flatten().double(), variance, **tolerance)
        fresh = random_weight(random.loc, random.variance)
        again = view(fresh)[i] if isinstance(parts, tuple) else view(fresh)
        assert torch.equal(again.materialize(), of(fresh.materialize()))


@pytest.mark.parametrize("function", VIEWS, ids=lambda f: getattr(f, "__qualname__", str(f)))
def test_view_acts_on_the_moments_and_on_the_draw(function):
    shape = (4, 3) if function in TWO_DIMENSIONS else (2, 3, 4)
    check_view(weight(*shape), lambda tensor: function(tensor, *VIEWS[function]))


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_basic_index_is_a_view(index):
    check_view(weight(2, 3, 4), lambda tensor: tensor[index])
    check_view(weight(2, 3, 4), lambda tensor: tensor[index[0]])


def test_factor_may_stand_on_the_left_and_views_nest():
    check_view(weight(2, 3), lambda tensor: -2 * (MASK[0, :, :3] * tensor.T.T) / 3)
    check_view(weight(4, 3), lambda tensor: (0.5 * tensor).T.reshape(2, 6)[1:].chunk(2, 1))
    check_view(weight(3, 2), lambda tensor: torch.mul(input=tensor, other=2.0))


def test_every_function_of_the_table_of_views_is_tested():
    assert set(VIEWS) == (views.TRANSPOSES | views._SHAPE_VIEWS | views.SCALINGS) - {T.cuda}


def test_output_of_a_view_is_sampled_locally_with_the_moments_of_the_view():
    x = torch.randn(1, 2).double().expand(2, 2)
    loc, variance = torch.randn(2, 6, 2).double()
    variance = variance.square()
    drawn = torch.stack([x @ (3 * random_weight(loc, variance)[1:4]).T for _ in range(400)])
    z = (drawn - 3 * x @ loc[1:4].T) / (9 * x.square() @ variance[1:4].T).sqrt()
    assert_standard_normal(z)  # the equal rows of x independent too


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


def test_second_use_raises_and_names_site_and_both_ways_out():
    random, x = weight(3, 3), torch.ones(2, 3).double()
    F.linear(x, random)
    message = r"site 'w': expected one use .*second one in matmul.*shared_sites=\['w'\].*reuse=\"independent\""
    with pytest.raises(ValueError, match=message):
        torch.matmul(x, random)


def test_reuse_independent_gives_the_difference_of_two_uses_twice_the_variance():
    x = torch.ones(1, 3).double()
    loc, variance = torch.zeros(2, 3).double(), torch.full((2, 3), 1 / 3).double()

    def two(**options) -> Tensor:
        random = random_weight(loc, variance, **options)
        return F.linear(x, random) - x @ random.T

    difference = torch.stack([two(reuse="independent") for _ in range(2000)])
    assert_mean_close(difference.square(), torch.tensor(2.0).double())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda w: w[:3], lambda w: w[3:]),
        (lambda w: w.chunk(2)[0], lambda w: w.chunk(2)[1]),
        (lambda w: w.T[:, :2], lambda w: w[2:].T.T),
        (lambda w: w[::2], lambda w: w[1::2]),
        (lambda w: w[:, :2], lambda w: w.split(2, dim=1)[1]),
        (lambda w: 2 * w[:3], lambda w: -w[3:]),
        (lambda w: w[:3].flip(0), lambda w: w[3:].clone()),
    ],
)
def test_disjoint_parts_may_be_used_once_each(first, second):
    random = weight(6, 4)
    for part in (first(random), second(random)):
        F.linear(torch.ones(1, part.shape[1]).double(), part)
    with pytest.raises(ValueError, match="second"):
        part = random[2:4]
        F.linear(torch.ones(1, part.shape[1]).double(), part)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda w: w[:3], lambda w: w[2:]),
        (lambda w: w, lambda w: w[5:]),
        (lambda w: w[:, :3], lambda w: w[4:]),
        (lambda w: w[::2], lambda w: w[4:]),
        (lambda w: 2 * w[:3], lambda w: w[:3].clone()),
        (lambda w: w.T, lambda w: w.reshape(-1)[-4:].reshape(1, 4)),
        (lambda w: w[:3].float(), lambda w: w[2:]),
    ],
)
def test_overlapping_parts_may_not(first, second):
    random = weight(6, 4)
    for part, reused in ((first(random), False), (second(random), True)):
        x = torch.ones(1, part.shape[1], dtype=part.dtype)
        if reused:
            with pytest.raises(ValueError, match="second one in linear"):
                F.linear(x, part)
        else:
            F.linear(x, part)


def test_disjoint_chunks_are_told_apart_without_listing_their_elements():
    random, x = weight(3 * 256, 256), torch.ones(1, 256).double()
    tracemalloc.start()
    for part in random.chunk(3):
        x @ part.T
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


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
