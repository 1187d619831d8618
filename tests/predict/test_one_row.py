"""A prediction of one example draws outputs in the place of weights where that is the same distribution."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vd as vd
from helpers.noise_families import FAMILIES, UNITS
from helpers.oracles import assert_mean_close
from helpers.predictive import classifier

ROW = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
DRAWS = 4000

# From a row x, a weight of 2 x 3 and a bias of 2 to any outputs.
ONE_ROW = {
    "linear": lambda x, w, b: F.linear(x, w, b),
    "a vector": lambda x, w, b: F.linear(x[0], w, b),
    "matmul": lambda x, w, b: x @ w.T + b,
    "the weight on the left": lambda x, w, b: w @ x.T,
    "mv": lambda x, w, b: torch.mv(w, x[0]),
    "einsum": lambda x, w, b: torch.einsum("oi,bi->bo", w, x) + b,
    "two views": lambda x, w, b: torch.cat([F.linear(x, part) for part in w.chunk(2)], 1),
}
MORE_ROWS = {
    "two rows": lambda x, w, b: F.linear(torch.cat([x, x + 1]), w, b),
    "a convolution": lambda x, w, b: F.conv1d(torch.cat([x, x + 1], 1)[:, None], w[:, None], b),
    "rows of an einsum": lambda x, w, b: torch.einsum("oi,bi->bo", w, torch.cat([x, x - 2])),
    "a bias of two rows": lambda x, w, b: torch.cat([x, x + 1])[:, :2] + b,
    "two uses": lambda x, w, b: torch.cat([F.linear(x, w), F.linear(x + 1, w)]),
    "views of a copy": lambda x, w, b: torch.cat([F.linear(x, part) for part in (2 * w).chunk(2)], 1),
    "a use and the weight": lambda x, w, b: F.linear(x, w, b) + w.sum(),
    "no linear function": lambda x, w, b: F.linear(x, w) * w.square().sum(),
}


def program(function, posterior, b=None):
    """A model that returns what a function makes of its weights, and the guide."""
    b = vd.DropoutNormal(torch.ones(2).double(), log_sigma2=torch.tensor([-1.0, 0.0]).double()) if b is None else b

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3).double(), 1.0).to_event(2))
        return pyro.deterministic("y", function(x, w, pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))))

    def guide(x):
        pyro.sample("w", posterior)
        pyro.sample("b", b.to_event(1))

    return model, guide


def normal():
    return FAMILIES["ard"]((2, 3), 1)


class Numbers(TorchDispatchMode):
    """Counts random numbers, of all draws that run side by side."""

    drawn = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "normal" in func.name() or "randn" in func.name():
            self.drawn += result.numel()
        return result


def assert_moments(drawn, mean, covariance):
    """Mean, and product of every pair of deviations."""
    centred = drawn.double().reshape(len(drawn), -1) - mean
    assert_mean_close(centred, torch.zeros_like(mean))
    assert_mean_close(centred[:, :, None] * centred[:, None, :], covariance)


@pytest.mark.parametrize("name", [*ONE_ROW, *(name for name in MORE_ROWS if name != "no linear function")])
def test_the_joint_moments_are_those_of_one_draw_of_the_weights(name):
    """Of affine functions: ``J mean`` and ``J covariance J^T``, J the Jacobian for weight and bias."""
    function = (ONE_ROW | MORE_ROWS)[name]
    posterior, moments = normal()
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    drawn = vd.posterior_predictive(*program(function, posterior), ROW, num_samples=DRAWS)["y"]
    at = torch.tensor(moments.mean).reshape(2, 3), torch.ones(2).double()
    j_w, j_b = torch.func.jacrev(lambda w, b: function(ROW, w, b).flatten(), (0, 1))(*at)
    j = torch.cat([j_w.flatten(1), j_b], 1)
    both = torch.block_diag(torch.tensor(moments.covariance), torch.diag(torch.tensor([-1.0, 0.0]).exp().double()))
    assert_moments(drawn, function(ROW, *at).flatten(), j @ both @ j.T)


@pytest.mark.parametrize("unit_dim", [0, 1])
@pytest.mark.parametrize("family", UNITS)
def test_noise_that_weights_share_is_that_of_one_draw(family, unit_dim):
    posterior, moments = FAMILIES[family]((2, 3), unit_dim)
    pyro.set_rng_seed(1)
    drawn = vd.posterior_predictive(*program(lambda x, w, b: x @ w.T, posterior), ROW, num_samples=DRAWS)["y"]
    j = torch.block_diag(ROW, ROW)
    assert_moments(drawn, j @ torch.tensor(moments.mean), j @ torch.tensor(moments.covariance) @ j.T)


@pytest.mark.parametrize("name", [*ONE_ROW, *(name for name in MORE_ROWS if name != "a bias of two rows")])
def test_only_one_row_of_a_layer_draws_outputs(name):
    """Numbers of 11 draws: the first draws the weight, the others do where a layer sees more rows."""
    counted = []
    for wide in (3, 3000):
        x = torch.ones(1, wide).double()
        posterior = vd.DropoutNormal(torch.ones(2, wide).double(), log_sigma2=-1.0).to_event(2)
        with Numbers() as numbers:
            vd.posterior_predictive(*program((ONE_ROW | MORE_ROWS)[name], posterior), x, num_samples=11)
        counted.append(numbers.drawn)
    grown = (counted[1] - counted[0]) / (2 * (3000 - 3))  # weights
    assert grown == 1 if name in ONE_ROW else grown >= 10


def test_several_rows_and_kept_weights_are_draws_of_the_weights():
    """Where the weights are asked for they belong to the outputs; pieces of one example are one function."""
    posterior, _ = normal()
    model, guide = program(ONE_ROW["linear"], posterior)
    kept = vd.posterior_predictive(model, guide, ROW, num_samples=20, return_sites=["y", "w", "b"])
    assert torch.allclose(kept["y"][:, 0], kept["w"] @ ROW[0] + kept["b"])
    same = vd.posterior_predictive(model, guide, ROW.repeat(3, 1), num_samples=20, batch_size=1)["y"]
    assert torch.allclose(same, same[:, :1])
    assert len(same[:, 0].unique(dim=0)) == 20


@pytest.mark.parametrize("returned", ["_RETURN", "view", "drawn"])
def test_a_weight_that_the_model_hands_out_is_a_draw(returned):
    posterior, moments = normal()

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3).double(), 1.0).to_event(2))
        pyro.deterministic("view", (2 * w).T)
        pyro.deterministic("drawn", w.clone())
        return w

    drawn = vd.posterior_predictive(model, lambda x: pyro.sample("w", posterior), ROW, num_samples=30,
                                    return_sites=[returned])[returned]  # fmt: skip
    assert type(drawn) is torch.Tensor and drawn.shape == (30, *((3, 2) if returned == "view" else (2, 3)))
    assert len(drawn.unique(dim=0)) == 30 and (drawn.std(0) > 0.1).all()


def test_a_net_predicts_one_image_as_it_predicts_two():
    """Probabilities of a net of two layers for an image, and for the same image twice: within standard errors."""
    model, guide = classifier(torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)))
    x = torch.tensor([[1.0, -1.0, 0.5, 2.0]])
    pyro.set_rng_seed(3)
    guide(x)
    draws = [
        vd.predictive_distribution(model, guide, data, num_samples=DRAWS)["y"].draws.probs[:, 0]
        for data in (x, x.repeat(2, 1))
    ]
    products = [torch.cat([p, (p[:, :, None] * p[:, None, :]).flatten(1)], 1) for p in draws]
    assert_mean_close(products[0] - products[1], torch.zeros(12))
