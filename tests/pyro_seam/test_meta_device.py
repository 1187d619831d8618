"""Every tensor is made where the net is, in its precision: seen on the meta device, which no tensor of a CPU may meet.

The meta device has shapes and no values, so that each combination takes milliseconds. A tensor of one dimension or more
on the CPU that meets one there raises, as it does on a GPU.
"""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pyro_vd as vd
from pyro_vd import guides
from pyro_vd.devices import placed_like

META = torch.device("meta")


class Calls(nn.Module):
    """A layer called with whole numbers, or several inputs, made from x."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def indices(x):
    return torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)


class Products(nn.Module):
    """Operations on a bare parameter."""

    def __init__(self, call, *shape):
        super().__init__()
        self.weight, self.call = nn.Parameter(torch.randn(*shape)), call

    def forward(self, x):
        return self.call(x, self.weight)


# What runs, the shape of its input, which has at least two axes.
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear of tokens": (lambda: nn.Linear(4, 3, bias=False), (5, 2, 4)),
    "perceptron": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 2, padding=1), (5, 4, 6)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 4, 2, groups=2, padding_mode="circular", padding=1), (5, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 3, 2), (5, 4, 3, 3, 3)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 3, 2, stride=2), (5, 4, 3, 3)),
    "embedding": (lambda: Calls(nn.Embedding(7, 3, padding_idx=1), lambda e, x: e(indices(x))), (5, 4)),
    "embedding bag": (lambda: Calls(nn.EmbeddingBag(7, 3), lambda e, x: e(indices(x))), (5, 4)),
    "bilinear": (lambda: Calls(nn.Bilinear(4, 4, 3), lambda b, x: b(x, x)), (5, 4)),
    "attention": (lambda: Calls(nn.MultiheadAttention(4, 2, batch_first=True), lambda a, x: a(x, x, x)[0]), (5, 3, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (5, 3, 4)),
    "LSTM": (lambda: Calls(nn.LSTM(4, 3, batch_first=True), lambda r, x: r(x)[0]), (5, 3, 4)),
    "GRU cell": (lambda: nn.GRUCell(4, 3), (5, 4)),
    "matmul": (lambda: Products(lambda x, w: x @ w, 4, 3), (5, 4)),
    "einsum": (lambda: Products(lambda x, w: torch.einsum("bi,io->bo", x, w), 4, 3), (5, 4)),
    "baddbmm": (lambda: Products(lambda x, w: torch.bmm(x, w.expand(len(x), 4, 3)), 4, 3), (1, 2, 4)),
    "scaled": (lambda: Products(lambda x, w: F.linear(x, 0.5 * w.T), 4, 3), (5, 4)),
}
# The guide, and a prior that it has a KL to.
FAMILIES = {
    "AutoSparseVD": (guides.AutoSparseVD, vd.ImproperLogUniform, {}),
    "AutoSparseVD, zeroed": (guides.AutoSparseVD, vd.ImproperLogUniform, {"zero_above": 3.0}),
    "AutoMeanField": (guides.AutoMeanField, lambda: dist.Normal(0.0, 1.0), {}),
    "AutoMeanField, array": (guides.AutoMeanField, lambda: dist.Normal(torch.zeros(1), torch.ones(1)), {}),
    "AutoARD": (guides.AutoARD, vd.ImproperLogUniform, {}),
    "AutoVariationalDropout": (guides.AutoVariationalDropout, vd.ImproperLogUniform, {"granularity": "unit"}),
    "AutoVariationalDropout, B": (guides.AutoVariationalDropout, vd.ImproperLogUniform, {"correlated": True}),
    "AutoGaussianDropout": (guides.AutoGaussianDropout, vd.ImproperLogUniform, {}),
    "AutoBernoulliDropout": (guides.AutoBernoulliDropout, lambda: dist.Normal(0.0, 1.0), {}),
    "AutoConcreteDropout": (guides.AutoConcreteDropout, lambda: dist.Normal(0.0, 1.0), {}),
    "AutoLowRank": (guides.AutoLowRank, lambda: dist.Normal(0.0, 1.0), {"rank": 2}),
    "AutoGroupSparse": (guides.AutoGroupSparse, vd.ImproperLogUniform, {}),
}
WITHOUT_FLIPOUT = (
    "AutoVariationalDropout, B", "AutoBernoulliDropout", "AutoConcreteDropout", "AutoGroupSparse", "AutoLowRank"
)  # fmt: skip
# Every layer with one family and every family with two layers; all the rest among the slow tests.
COMBINATIONS = [
    pytest.param(
        *(layer, family, estimator),
        marks=[] if family == "AutoSparseVD" or layer in ("perceptron", "attention") else [pytest.mark.slow],
    )
    for layer in LAYERS
    for family in FAMILIES
    for estimator in ("local", "shared", "per_example", "flipout")
    if estimator != "flipout" or family not in WITHOUT_FLIPOUT
]


@pytest.fixture(autouse=True)
def _no_validation():
    pyro.enable_validation(False)  # it looks at values, which there are none of


def program(net, prior, shape):
    bnn = vd.BayesianModule(net, prior, where=lambda name, module: net_weight(name, net))

    def model(x, y=None):
        mean = bnn(x).flatten(1)
        with vd.data_plate(100, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    return model


def net_weight(name, net):
    return name.rpartition(".")[2].startswith(("weight", "in_proj_weight")) and net.get_parameter(name).dim() > 1


@pytest.mark.parametrize("layer, family, estimator", COMBINATIONS)
def test_loss_and_gradients_lie_where_the_net_is(layer, family, estimator):
    make, shape = LAYERS[layer]
    auto, prior, options = FAMILIES[family]
    elbo = vd.TraceVD_ELBO(estimator, reuse="independent")
    net = make().to(META)
    model = program(net, prior(), shape)
    x = torch.zeros(shape, device=META)
    guide = auto(model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations without a local form, such as noise of units in an embedding
        y = torch.zeros(net(x).flatten(1).shape, device=META)
        loss = elbo.differentiable_loss(model, guide, x, y)
        loss.backward()
        draws = vd.posterior_predictive(model, guide, x, num_samples=2)["y"]
    places = {loss.device, draws.device, *(value.device for value in guide.state_dict().values())}
    places |= {parameter.grad.device for parameter in guide.parameters() if parameter.grad is not None}
    assert places == {META} and loss.dtype == torch.float32 and draws.shape == (2, *y.shape)
    assert any(parameter.grad is not None for parameter in guide.parameters())


PRIORS = {
    "Normal": lambda: dist.Normal(0.0, 1.0),
    "StudentT": lambda: dist.StudentT(torch.tensor([3.0]), 0.0, torch.tensor([1.0])),
    "Laplace": lambda: dist.Laplace(torch.zeros(3), 1.0),
    "masked": lambda: dist.Normal(torch.zeros(3), 1.0).mask(torch.ones(3) > 0),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0), [dist.transforms.AffineTransform(torch.ones(3), torch.ones(3))]
    ),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.zeros(2), torch.tensor([0.1, 1.0]))
    ),
    "TruncatedLogUniform": lambda: vd.TruncatedLogUniform(torch.tensor([0.1, 0.1, 0.2]), 1.0),
    "ImproperLogUniform": vd.ImproperLogUniform,
    "DropoutNormal": lambda: vd.DropoutNormal(torch.zeros(3), log_sigma2=torch.zeros(3)),
}


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_prior_follows_its_weight(name, dtype):
    prior, weight = PRIORS[name](), torch.ones(2, 3, dtype=dtype)
    placed = placed_like(prior, weight.to(META))
    expanded = placed.expand(weight.shape)
    assert type(placed) is type(prior) and expanded.batch_shape == weight.shape
    value = torch.full((2, 3), 0.5, device=META)
    log_prob = expanded.log_prob(value)
    assert log_prob.device == META and log_prob.shape == (2, 3)
    there = placed_like(prior, weight)
    wide = torch.promote_types(dtype, torch.float32)
    at = torch.full((2, 3), 0.5, dtype=wide)
    torch.testing.assert_close(there.expand([2, 3]).log_prob(at).float(), prior.expand([2, 3]).log_prob(at.float()))
    if name != "ImproperLogUniform":
        assert there.expand([2, 3]).sample().dtype == wide
    assert placed_like(there, weight) is there, "nothing moves twice"


def test_the_inverse_of_a_transform_moves_with_it():
    prior = PRIORS["transformed"]()
    transform = prior.transforms[0]
    transform.inv(torch.ones(3))  # which it remembers
    there = placed_like(prior, torch.ones(3, dtype=torch.float64)).transforms[0]
    assert there.inv(torch.ones(3, dtype=torch.float64)).dtype == torch.float64 and there.inv.inv is there
    inverse = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), [transform.inv])
    assert placed_like(inverse, torch.ones(3, device=META)).transforms[0](torch.zeros(3, device=META)).is_meta


def test_a_learned_prior_keeps_its_gradient_where_it_moves():
    scale = torch.ones((), requires_grad=True)
    bnn = vd.BayesianModule(nn.Linear(3, 2).double(), dist.Normal(0.0, scale))
    guide = guides.AutoMeanField(bnn)
    x = torch.ones(4, 3, dtype=torch.float64)
    vd.TraceVD_ELBO().differentiable_loss(bnn, guide, x).backward()
    assert scale.grad is not None and scale.grad != 0 and scale.grad.dtype == torch.float32


@pytest.mark.parametrize("prior", ["normal", "log-uniform", "truncated"])
@pytest.mark.parametrize("estimator", ["local", "shared", "per_example"])
def test_hand_written_models_under_a_default_device(estimator, prior):
    priors = {"normal": lambda: dist.Normal(0.0, 1.0), "log-uniform": vd.ImproperLogUniform,
              "truncated": lambda: vd.TruncatedLogUniform(0.1, 1.0)}  # fmt: skip

    def model(x, y):
        weight = pyro.sample("w", priors[prior]().expand([3, 4]).to_event(2))
        with vd.data_plate(10, len(x)):
            pyro.sample("y", dist.Normal(F.linear(x, weight), 1.0).to_event(1), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", lambda: torch.ones(3, 4))
        pyro.sample("w", vd.DropoutNormal(loc, log_sigma2=-2.0).to_event(2))

    torch.set_default_device("meta")
    try:
        x, y = torch.zeros(5, 4), torch.zeros(5, 3)
        automatic = (
            guides.AutoSparseVD(model, where="w") if prior == "log-uniform" else guides.AutoMeanField(model, where="w")
        )
        for one in (guide, automatic):
            elbo = vd.TraceVD_ELBO(estimator, analytic_only=prior != "truncated")
            loss = elbo.differentiable_loss(model, one, x, y)
            loss.backward()
            assert loss.device == META
        assert vd.posterior_predictive(lambda x: model(x, None), lambda x: guide(x, None), x, num_samples=2)[
            "y"
        ].is_meta
        with vd.data_plate(10, 5) as index:
            assert index.device == META
    finally:
        torch.set_default_device("cpu")


@pytest.mark.parametrize(
    "q",
    [
        lambda loc: vd.DropoutNormal(loc, -1.0),
        lambda loc: vd.DropoutNormal(loc, log_sigma2=-1.0),
        lambda loc: vd.CorrelatedDropoutNormal(loc, -1.0),
        lambda loc: vd.BernoulliDropout(loc, 0.5),
        lambda loc: vd.ConcreteDropout(loc, 0.5),
        lambda loc: vd.LowRankNormal(loc, -1.0, loc[None]),
        lambda loc: vd.GroupNormal(loc, 0.0, loc[0], -1.0),
        lambda loc: vd.TruncatedLogUniform(0.1, loc),
        lambda loc: vd.TruncatedLogUniform(loc, 9.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_follow_the_tensor_they_stand_beside(q, dtype):
    made = q(torch.ones(2, 3, dtype=dtype, device=META))
    for tensor in (made.rsample(), made.mean, made.variance):
        assert tensor.device == META and tensor.dtype == dtype
    assert "meta" not in repr(made) and repr(made)
