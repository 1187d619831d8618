"""How outputs of random weights are distributed: exact moments, exact zeros, and the draws of each estimator.

Moments are compared with explicit loops in float64 to 1e-10; drawn outputs with mean + sqrt(variance) * noise, the
noise known. Statistical assertions on top allow the standard errors of ``oracles.standard_errors``, so that each
fails by chance with probability 1e-6 (were the seed not fixed).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_vd as vd
import pyro_vd.estimators
import pyro_vd.weights
from helpers.operation_cases import CASES
from helpers.oracles import assert_mean_close
from helpers.weights import assert_standard_normal, random_weight, weight_of
from pyro_vd.estimators import LinearOp, WeightNoise, independent_noise, local, moments, safe_sqrt

ALL = [pytest.param(case, kind, id=f"{case.name}, bias {kind}") for case in CASES.values() for kind in case.biases]
# For statistics: every operation once, not every call form, with its bias random where it has one.
DRAWN = [
    pytest.param(case, "random" if case.bias else "none", id=name)
    for name, case in CASES.items()
    if not any(form in name for form in ("keyword", "mixed", "module", "valid", "empty"))
]
BATCHED = [parameters for parameters in DRAWN if parameters.values[0].example is not None]


class Recorder(TorchDispatchMode):
    """Notes the shape of every tensor of random numbers, and the largest storage of any tensor."""

    def __init__(self):
        super().__init__()
        self.noises: list[torch.Size] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.noises.append(out.shape)
        return out


def outputs(case, kind: str, estimator: str, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """``number`` outputs, each from a weight of its own, and their mean and variance by loops."""
    x, weight, bias, mean, variance = case.build(kind, estimator)

    def fresh(value):
        random = isinstance(value, vd.RandomWeight)
        return random_weight(value.loc, value.variance, estimator, site=value.site) if random else value

    return torch.stack([case.call(x, fresh(weight), fresh(bias)) for _ in range(number)]), mean, variance


@pytest.mark.parametrize(("case", "kind"), ALL)
def test_moments_equal_explicit_loops_and_one_noise_is_drawn(case, kind, monkeypatch):
    x, weight, bias, mean, variance = case.build(kind)
    seen = []

    def spy(op: LinearOp) -> Tensor:
        seen.append(moments(op))
        torch.manual_seed(1)
        return local(op)

    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", spy)
    with Recorder() as recorder:
        output = case.call(x, weight, bias)
    ((got_mean, got_variance),) = seen
    assert got_mean.shape == got_variance.shape == output.shape == mean.shape
    torch.testing.assert_close(got_mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(got_variance, variance, rtol=0, atol=1e-10)
    assert recorder.noises == [output.shape]
    torch.manual_seed(1)
    expected = mean + variance.sqrt() * torch.randn_like(got_variance)
    # The root of a variance near 0 magnifies its rounding: 1e-16 becomes 1e-8.
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-7)


@pytest.mark.slow  # of what the exact test above says
@pytest.mark.parametrize(("case", "kind"), DRAWN)
def test_local_draws_are_gaussian_and_independent_over_all_output_elements(case, kind):
    drawn, mean, variance = outputs(case, kind, "local", 400)
    assert_standard_normal((drawn - mean) / variance.sqrt())
    if case.example is not None:
        first, second = drawn.select(case.draws_axis, 0), drawn.select(case.draws_axis, 1)
        assert (first != second).all()  # the first two examples of a case are equal


@pytest.mark.parametrize(("case", "kind"), BATCHED)
def test_per_example_draws_have_the_moments_and_independent_examples(case, kind):
    drawn, mean, variance = outputs(case, kind, "per_example", 400)
    assert drawn.shape[1:] == mean.shape
    z = (drawn - mean) / variance.sqrt()
    assert_standard_normal(z, independent=False)
    axis = case.draws_axis
    assert_mean_close((z.select(axis, 0) * z.select(axis, 1)).reshape(len(z), -1), torch.zeros(()))


@pytest.mark.parametrize(("case", "kind"), BATCHED)
def test_flipout_draws_have_the_moments_and_uncorrelated_examples(case, kind):
    drawn, mean, variance = outputs(case, kind, "flipout", 400)
    assert drawn.shape[1:] == mean.shape
    z = (drawn - mean) / variance.sqrt()
    assert_standard_normal(z, independent=False)
    axis = case.draws_axis
    assert_mean_close((z.select(axis, 0) * z.select(axis, 1)).reshape(len(z), -1), torch.zeros(()))


def test_per_example_tokens_of_one_example_share_the_draw():
    weight = random_weight(torch.randn(2, 3).double(), torch.ones(2, 3).double(), "per_example")
    x = torch.randn(1, 2, 3).double().expand(4, 2, 3)
    y = F.linear(torch.cat([x, x.sum(1, keepdim=True)], 1), weight)
    torch.testing.assert_close(y[:, 0] + y[:, 1], y[:, 2], rtol=0, atol=1e-12)
    assert (y[0] != y[1]).all()


@pytest.mark.parametrize("estimator", ["per_example", "flipout"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_positions_with_equal_patches_come_out_equal_within_an_example(estimator, spatial):
    operation = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
    weight, bias = (random_weight(torch.zeros(s).double(), torch.ones(s).double(), estimator, site=str(s))
                    for s in ((4, 3, *(2,) * spatial), (4,)))  # fmt: skip
    x = torch.randn(1, 3, *(1,) * spatial).double().expand(5, 3, *(4,) * spatial)
    y = operation(x, weight, bias).flatten(2)
    torch.testing.assert_close(y, y[..., :1].expand_as(y), rtol=0, atol=1e-12)
    assert len(y[:, :, 0].unique(dim=0)) > 1  # while equal examples come out different


def test_flipout_flips_the_perturbation_alone_and_draws_it_once():
    loc, x = torch.full((1, 1), 1000.0).double(), torch.full((64, 1), 2.0).double()
    y = F.linear(x, random_weight(loc, torch.full((1, 1), 1e-4).double(), "flipout"))
    deviation = y - 2000.0
    torch.testing.assert_close(deviation.abs(), deviation[:1].abs().expand(64, 1), rtol=0, atol=1e-9)
    assert 0 < deviation.abs().max() < 1 and len(deviation.sign().unique()) == 2


def test_random_bias_added_by_a_plus_sign_has_noise_of_its_own_in_every_row():
    for add in (lambda x, b: x + b, lambda x, b: b + x, lambda x, b: torch.add(x, other=b)):
        bias = random_weight(torch.tensor([1.0, 2.0]).double(), torch.tensor([4.0, 0.0]).double())
        x = torch.randn(3, 2).double()
        with Recorder() as recorder:
            y = add(x, bias)
        assert recorder.noises == [(3, 2)] and len((y - x)[:, 0].unique()) == 3
        torch.testing.assert_close((y - x)[:, 1], torch.full((3,), 2.0).double())
    drawn = torch.stack([x + random_weight(bias.loc, torch.tensor([4.0, 9.0]).double()) for _ in range(400)])
    assert_standard_normal((drawn - x - bias.loc) / torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("estimator", ["local", "per_example", "flipout"])
def test_no_variance_gives_the_mean_exactly_and_finite_gradients(estimator):
    """Dead units, one-hot rows and padding zeros: no noise, no floor, no NaN."""
    x = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double().requires_grad_()
    loc = torch.randn(2, 3).double().requires_grad_()
    log_sigma2 = torch.tensor([[0.0, -torch.inf, -800.0], [-torch.inf] * 3]).double().requires_grad_()
    y = F.linear(x, random_weight(loc, log_sigma2.exp(), estimator))
    noiseless = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 1]]).bool()
    assert torch.equal(y[noiseless], F.linear(x, loc)[noiseless]) and y[1, 0] != loc[0, 0]
    gradients = torch.autograd.grad(y.square().sum(), (x, loc, log_sigma2))
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Where there is no noise, the gradient is that of the mean.
    torch.testing.assert_close(gradients[1][1], (2 * x.T @ F.linear(x, loc)[:, 1]).detach(), rtol=0, atol=1e-12)


def test_zero_padding_has_no_noise_and_finite_gradients():
    x = torch.randn(2, 1, 3).double().requires_grad_()
    loc, variance = (torch.ones(1, 1, 1).double().requires_grad_() for _ in range(2))
    y = F.conv1d(x, random_weight(loc, variance), padding=2)
    assert torch.equal(y[..., [0, 1, -2, -1]], torch.zeros(2, 1, 4).double()) and (y[..., 2:-2] != x).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (x, loc, variance)))


def test_the_root_has_no_floor_reads_negative_variance_as_zero_and_keeps_the_gradient():
    variance = torch.tensor([-1e-9, 0.0, 1e-30, 4.0], dtype=torch.float64, requires_grad=True)
    root = safe_sqrt(variance)
    torch.testing.assert_close(root, torch.tensor([0.0, 0.0, 1e-15, 2.0], dtype=torch.float64), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(root.sum(), variance)
    torch.testing.assert_close(
        gradient, torch.tensor([0.0, 0.0, 0.5e15, 0.25], dtype=torch.float64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_variance_is_computed_in_float32_in_half_precision(dtype, autocast, monkeypatch):
    """300**2 overflows float16, and (1e-4)**2 underflows it to a multiple of 6e-8."""
    x = torch.tensor([[300.0], [1e-4]])
    loc, variance = torch.zeros(2, 1), torch.tensor([[1.0], [1e-4]])
    if not autocast:
        x, loc = x.to(dtype), loc.to(dtype)
    weight = weight_of(WeightNoise(loc, variance, draw=lambda shape: loc), variance)
    seen = []
    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", lambda op: seen.append(moments(op)) or local(op))
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        y = F.linear(x, weight)
    ((mean, got),) = seen
    assert mean.dtype == y.dtype == dtype and got.dtype == torch.float32
    torch.testing.assert_close(got, x.float().square() @ variance.T, rtol=1e-6, atol=0)
    assert y.isfinite().all() and (y[0] != 0).all()


def test_half_precision_posterior_keeps_a_variance_below_the_smallest_half():
    """A standard deviation of 1e-4 is a float16 number, its square is not."""
    log_sigma2 = torch.tensor([[-18.42]], dtype=torch.float16)
    noise = vd.DropoutNormal(torch.zeros(1, 1).half(), log_sigma2=log_sigma2).noise()
    torch.testing.assert_close(noise.variance.float(), log_sigma2.float().exp(), rtol=1e-3, atol=0)


def test_local_linear_holds_no_tensor_of_rows_times_inputs_times_outputs():
    B, D, H = 7, 11, 13
    x, loc, variance = (torch.rand(shape, requires_grad=True) for shape in ((B, D), (H, D), (H, D)))
    with Recorder() as recorder:
        F.linear(x, random_weight(loc, variance)).sum().backward()
    assert 0 < recorder.largest <= max(B * D, B * H, D * H)


def test_unit_noise_multiplies_the_input_of_each_row_once():
    """W = diag(s) loc, s ~ N(1, alpha): outputs of one row share s, rows do not (Kingma et al. 2015, section 3.2)."""
    alpha, loc = torch.tensor([0.5, 0.0, 2.0]).double(), torch.randn(2, 3).double()

    def draw_units(shape: torch.Size) -> Tensor:
        return 1 + alpha.sqrt() * torch.randn(*shape, 3, dtype=torch.float64)

    noise = WeightNoise(loc, None, draw=lambda shape: loc, unit_dim=1, draw_units=draw_units)
    variance = alpha * loc.square()
    x = torch.randn(1, 3).double().expand(2, 3)
    drawn = torch.stack([F.linear(x, weight_of(noise, variance)) for _ in range(4000)])
    assert_mean_close(drawn, x @ loc.T)
    within = (x[0] * loc) @ alpha.diag() @ (x[0] * loc).T
    covariance = torch.block_diag(within, within)
    deviation = (drawn - x @ loc.T).flatten(1)
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], covariance)


def test_low_rank_noise_is_drawn_once_for_each_row_beside_the_independent_part():
    loc, variance, factor = torch.randn(2, 3).double(), torch.rand(2, 3).double(), torch.randn(2, 2, 3).double()
    noise = WeightNoise(loc, variance, draw=independent_noise(loc, variance).draw, factor=factor)
    x = torch.randn(1, 3).double().expand(2, 3)
    drawn = torch.stack([F.linear(x, weight_of(noise, variance)) for _ in range(4000)])
    through = torch.einsum("i,roi->or", x[0], factor)
    within = through @ through.T + (variance @ x[0].square()).diag()
    deviation = (drawn - x @ loc.T).flatten(1)
    assert_mean_close(deviation, torch.zeros(4).double())
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], torch.block_diag(within, within))
