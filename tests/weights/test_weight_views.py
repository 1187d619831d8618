"""Views of a random weight: each acts on the moments and on the draw. Exact, but for the one check on drawn outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyro_vd as vd
from helpers.weights import assert_standard_normal, random_weight, undrawn, weight
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
