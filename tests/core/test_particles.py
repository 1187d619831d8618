"""torch.func.vmap over particles: noise of its own for each, the same gradient on average; the other transforms.

Exact, but for two statistical tests, which allow the standard errors of ``oracles.standard_errors``.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn
from torch.func import grad, vmap

import pyro_vd as vd
from helpers.oracles import assert_mean_close
from helpers.weights import assert_standard_normal, random_weight

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
LOC, SCALE = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def particles(function, number: int):
    return vmap(lambda _: function(), randomness="different")(torch.arange(number))


def test_particles_have_independent_noise_with_the_moments_of_one():
    y = particles(lambda: F.linear(X, random_weight(LOC, SCALE.square())), 400)
    assert_standard_normal((y - X @ LOC.T) / (X.square() @ SCALE.square().T).sqrt())


OPERATIONS = {
    "linear": lambda w: F.linear(X, w),
    "two chunks": lambda w: F.linear(X, w[:1]) + F.linear(X, w[1:]),
    "einsum": lambda w: torch.einsum("bi,oi->bo", X, w),
    "conv1d": lambda w: F.conv1d(X[:, :, None], w[:, :, None]),
    "conv_transpose1d": lambda w: F.conv_transpose1d(X[:, :2, None], w[:, :, None]),
    "embedding": lambda w: F.embedding(torch.tensor([[0, 1, 1]]), w),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_particles_may_have_parameters_of_their_own(operation):
    """A batch of means, as of an ensemble: each without noise gives what it gives alone."""
    locs = torch.stack([LOC, 2 * LOC, -LOC])
    got = vmap(lambda loc: operation(random_weight(loc, torch.zeros_like(loc))), randomness="different")(locs)
    expected = torch.stack([operation(loc) for loc in locs])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    noisy = vmap(lambda loc: operation(random_weight(loc, SCALE.square())), randomness="different")(locs[[0, 0]])
    assert (noisy[0] != noisy[1]).any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of PyTorch goes through cells one by one
def test_coherent_draws_of_particles_differ():
    state = torch.zeros(4, 2).double()
    y = particles(lambda: torch.rnn_tanh_cell(X, state, random_weight(LOC, SCALE.square()), LOC[:, :2]), 20)
    assert len(y[:, 0, 0].unique()) == 20
    torch.testing.assert_close(y[0], torch.rnn_tanh_cell(X, state, *_weights_of(y[0], state)), rtol=0, atol=1e-9)


def _weights_of(y: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The one draw that gives the outputs of all four examples, by least squares."""
    return torch.linalg.lstsq(X, torch.atanh(y)).solution.T, LOC[:, :2]


def test_overlapping_parts_are_still_told_apart_inside_vmap():
    def overlapping(loc: Tensor) -> Tensor:
        weight = random_weight(loc, SCALE)
        return F.linear(X, weight[:1]) + F.linear(X, weight)

    with pytest.raises(ValueError, match="second one in linear"):
        vmap(overlapping, randomness="different")(torch.stack([LOC, LOC]))


def program():
    """A net, its model and guide, called once: Pyro's store takes parameters in outside of vmap only."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    bnn = vd.BayesianModule(net, dist.Normal(torch.zeros(()).double(), 1.0))
    log_sigma2 = {name: torch.full_like(net.get_parameter(name), -1.0) for name in bnn.weight_names}

    def model(x: Tensor):
        mean = bnn(x)
        with vd.data_plate(4, 4):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(4, 1).double())

    def guide(x: Tensor):
        for name in bnn.weight_names:
            loc = net.get_parameter(name)
            pyro.sample(f"net.{name}", vd.DropoutNormal(loc, log_sigma2=log_sigma2[name]).to_event(2))

    model(X)
    return net, bnn, model, guide


def test_forward_of_a_whole_program_under_lrt_and_vmap():
    _, bnn, _, guide = program()

    def forward() -> Tensor:
        trace = poutine.trace(vd.lrt(guide)).get_trace(X)
        return poutine.replay(bnn, trace)(X)

    y = particles(forward, 50)
    assert y.shape == (50, 4, 1) and len(y.flatten().unique()) == 200


def test_mean_gradient_of_particles_is_that_of_one_evaluation():
    pyro.enable_validation(False)
    net, _, model, guide = program()
    elbo = vd.TraceVD_ELBO()

    def loss() -> Tensor:
        return elbo.terms(model, guide, X).loss

    weight = net[0].weight
    vectorised = torch.stack([torch.autograd.grad(particles(loss, 20).mean(), weight)[0] for _ in range(30)])
    single = torch.stack([torch.autograd.grad(loss(), weight)[0] for _ in range(600)])
    assert_mean_close(vectorised - single.reshape(30, 20, *weight.shape).mean(1), torch.zeros(2, 3).double())
    assert (vectorised.std(0) < 0.5 * single.std(0)).all()  # a mean of twenty


def test_gradient_of_each_particle_by_the_transforms_of_torch():
    def loss(loc: Tensor) -> Tensor:
        return F.linear(X, random_weight(loc, SCALE.square())).sum()

    # The output is linear in the mean: its gradient has no noise.
    expected = X.sum(0).expand(2, 3)
    each = vmap(grad(loss), randomness="different")(torch.stack([LOC, -LOC]))
    torch.testing.assert_close(each, expected.expand(2, 2, 3), rtol=0, atol=1e-12)
    mean = grad(lambda loc: particles(lambda: loss(loc), 5).mean())(LOC)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["sigmoid", "exact", "ard"])
def test_kl_of_each_particle_and_its_gradient(method):
    def kl(loc: Tensor, log_sigma2: Tensor) -> Tensor:
        q = vd.DropoutNormal(loc, log_sigma2=log_sigma2, kl=method)
        return torch.distributions.kl_divergence(q, vd.ImproperLogUniform()).sum()

    locs, log_sigma2 = torch.stack([LOC, 3 * LOC]), SCALE.square().log()
    for function in (kl, grad(kl), grad(kl, argnums=1)):
        got = vmap(function, in_dims=(0, None))(locs, log_sigma2)
        torch.testing.assert_close(got, torch.stack([function(loc, log_sigma2) for loc in locs]), rtol=1e-12, atol=0)
    by_autograd = [tensor.clone().requires_grad_() for tensor in (LOC, log_sigma2)]
    gradients = torch.autograd.grad(kl(*by_autograd), by_autograd)
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, grad(kl, argnums=i)(LOC, log_sigma2), rtol=1e-12, atol=0)
