"""mode="moments": exact for one and two linear layers, heads, nets for which it is approximate, and what is refused."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyro_vd as vd
from helpers.oracles import assert_mean_close, assert_variance_close
from pyro_vd.guides import AutoGroupSparse, AutoMeanField

DRAWS = 200_000


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def forecast(net, x, likelihood=lambda o: dist.Normal(o, 0.3).to_event(1), log_sigma2=-1.0, **options):
    """The prediction in one pass, and the guide."""
    bnn = vd.BayesianModule(net.eval(), dist.Normal(0.0, 1.0))

    def model(x):
        pyro.sample("y", likelihood(bnn(x)))

    guide = AutoMeanField(bnn, init_log_sigma2=log_sigma2)
    guide(x)
    return vd.predictive_distribution(model, guide, x, mode="moments", **options)["y"], guide


def test_one_linear_layer_is_exact():
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    y, _ = forecast(net, x)
    torch.testing.assert_close(y.mean, net(x))
    torch.testing.assert_close(y.epistemic_variance, F.linear(x.square(), torch.full((3, 4), math.exp(-1))))
    torch.testing.assert_close(y.aleatoric_variance, torch.full((5, 3), 0.09))


def test_two_linear_layers_are_exact():
    """``Var y = sum over hidden h of s**2 * (E h)**2 + (loc**2 + s**2) * Var h``, by loops."""
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(5, 4)
    y, _ = forecast(net, x)
    hidden, s2 = net[0](x), math.exp(-1)
    for n in range(5):
        for k in range(2):
            mean, variance = net[1].bias[k], 0.0
            for j in range(3):
                weight = net[1].weight[k, j]
                h_variance = s2 * x[n].square().sum()
                mean = mean + weight * hidden[n, j]
                variance += s2 * hidden[n, j] ** 2 + (weight**2 + s2) * h_variance
            assert y.mean[n, k].item() == pytest.approx(mean.item(), abs=1e-10)
            assert y.epistemic_variance[n, k].item() == pytest.approx(variance.item())


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.ELU(),
     nn.Hardtanh(), nn.ReLU6(), nn.BatchNorm1d(5), nn.Dropout(), nn.Identity()],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_a_nonlinear_layer_between_two_linear_ones(activation):
    """Mean and variance of the outputs against 200,000 draws of all weights, within their standard errors."""
    net = nn.Sequential(nn.Linear(3, 5), activation, nn.Linear(5, 2))
    if isinstance(activation, nn.BatchNorm1d):
        activation.double()
        activation.running_mean.fill_(0.3)
        activation.running_var.fill_(2.0)
        nn.init.normal_(activation.weight)
    x = torch.randn(2, 3)
    y, _ = forecast(net, x, log_sigma2=-2.0)
    with torch.no_grad():
        first = net[0].weight + math.exp(-1) * torch.randn(DRAWS, 5, 3)
        last = net[2].weight + math.exp(-1) * torch.randn(DRAWS, 2, 5)
        hidden = (torch.einsum("bi,sji->sbj", x, first) + net[0].bias).reshape(-1, 5)
        hidden = activation(hidden).reshape(DRAWS, 2, 5)
        outputs = torch.einsum("sbj,skj->sbk", hidden, last) + net[2].bias
    # The quadrature's error (elementwise.py): at most 5e-4 for ELU at this width, far below it for the others.
    assert_mean_close(outputs, y.mean, factor=1.2)
    assert_variance_close(outputs, y.epistemic_variance)


HEADS = {
    "categorical": (lambda o: dist.Categorical(logits=o), lambda y: y.probs),
    "categorical of probabilities": (
        lambda o: dist.Categorical(probs=(3 * o).softmax(-1)), lambda y: torch.cat([y.probs, y.draws.probs.std(0)]),
    ),
    "bernoulli": (lambda o: dist.Bernoulli(logits=o).to_event(1), lambda y: y.probs),
    "bernoulli of probabilities": (
        lambda o: dist.Bernoulli((3 * o).sigmoid()).to_event(1), lambda y: y.epistemic_variance.sqrt(),
    ),
    "two parameters": (lambda o: dist.Normal(o[:, 0], F.softplus(o[:, 1]) + 0.01), lambda y: y.variance),
    "poisson": (lambda o: dist.Poisson(o[:, 0].exp()), lambda y: y.mean),
    "multivariate": (lambda o: dist.MultivariateNormal(o, torch.eye(3)), lambda y: y.epistemic_variance),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    """After one linear layer, whose outputs are Gaussian: 2,000 draws at its end against 20,000 of the weights."""
    likelihood, quantity = HEADS[name]
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    y, guide = forecast(net, x, likelihood, log_sigma2=-3.0, num_samples=2000)

    def model(x):
        pyro.sample("y", likelihood(guide.model(x)))

    weights = vd.predictive_distribution(model, guide, x, num_samples=20_000)["y"]
    assert y.num_samples == 2000 and type(y.draws) is type(weights.draws)
    torch.testing.assert_close(quantity(y), quantity(weights), rtol=0.05, atol=0.005)


def test_the_density_of_a_gaussian_head():
    """Of a linear model the predictive is a Gaussian of the summed variances."""
    net, x, value = nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6, 1)
    y, _ = forecast(net, x, num_samples=400)
    variance = x.square().sum(-1, keepdim=True) * math.exp(-1) + 0.09
    expected = dist.Normal(net(x), variance.sqrt()).log_prob(value).sum(-1)
    torch.testing.assert_close(y.log_prob(value), expected, rtol=2e-3, atol=2e-3)


class Attention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention, self.last, self.need_weights = (
            nn.MultiheadAttention(6, 2, batch_first=True),
            nn.Linear(6, 2),
            need_weights,
        )

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=self.need_weights)[0])[:, 0]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(x + torch.relu(self.inner(x)))


NETS = {
    "attention": (Attention(False), (3, 4, 6), 0.45),
    "attention with weights": (Attention(True), (3, 4, 6), 0.45),
    "residual": (Residual(), (3, 6), 0.03),
    "layer norm": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)), (3, 6), 0.15),
    "convolutions": (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)),
        (3, 1, 8, 8), 0.12,
    ),
    "transformer": (
        nn.Sequential(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), nn.Flatten(), nn.Linear(24, 2)),
        (3, 4, 6), 0.12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_nets_for_which_moments_are_approximate(name):
    """The standard deviation against 4,000 weight draws, within what the docstrings say is dropped."""
    net, shape, tolerance = NETS[name]
    for parameter in net.parameters():
        parameter.data = parameter.data.double()
    x = torch.randn(shape)
    y, guide = forecast(net, x, log_sigma2=-4.0)

    def model(x):
        pyro.sample("y", dist.Normal(guide.model(x), 0.3).to_event(1))

    weights = vd.predictive_distribution(model, guide, x, num_samples=4000)["y"]
    ratio = (y.epistemic_variance / weights.epistemic_variance).sqrt()
    assert (ratio - 1).abs().max() < tolerance + 0.08  # 0.08: five standard errors of a standard deviation
    assert ((y.mean - weights.mean).abs() < 0.25 * weights.epistemic_variance.sqrt()).all()


def test_an_operation_without_a_rule():
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Softmin(-1), nn.Linear(5, 2)), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r'got softmin on shapes \[\(3, 5\)\]; write on_unknown="sample"'):
        forecast(net, x)
    y, guide = forecast(net, x, num_samples=300, on_unknown="sample")
    assert y.num_samples == 300 and len(y.draws.base_dist.loc.unique(dim=0)) == 300

    def model(x):
        pyro.sample("y", dist.Normal(guide.model(x), 0.3).to_event(1))

    weights = vd.predictive_distribution(model, guide, x, num_samples=3000)["y"]
    torch.testing.assert_close(y.stddev, weights.stddev, rtol=0.2, atol=0.0)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_pieces(batch_size):
    net, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(5, 4)
    whole, _ = forecast(net, x)
    pieces, _ = forecast(net, x, batch_size=batch_size)
    torch.testing.assert_close(pieces.mean, whole.mean)
    torch.testing.assert_close(pieces.epistemic_variance, whole.epistemic_variance)


def test_other_sites_of_the_guide_take_their_mean():
    bnn = vd.BayesianModule(nn.Linear(4, 1), dist.Normal(0.0, 1.0))

    def model(x):
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(bnn(x), noise).to_event(1))

    weights = AutoMeanField(bnn)

    def guide(x):
        pyro.sample("noise", dist.LogNormal(-1.0, 0.1))
        weights(x)

    y = vd.predictive_distribution(model, guide, torch.randn(3, 4), mode="moments")["y"]
    torch.testing.assert_close(y.aleatoric_variance, torch.full((3, 1), math.exp(-1.0 + 0.005) ** 2))


def test_refusals():
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), torch.randn(3, 4)
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x):
        return pyro.sample("y", dist.Normal(bnn(x), 0.3).to_event(1))

    def uses(x):
        return model(x) + 1

    guide = AutoGroupSparse(bnn)
    guide(x)
    with pytest.raises(ValueError, match="site 'net.0.weight': expected a weight whose elements are independent"):
        vd.predictive_distribution(model, guide, x, mode="moments")
    drawn = vd.predictive_distribution(model, guide, x, mode="moments", on_unknown="sample", num_samples=20)["y"]
    assert drawn.num_samples == 20 and (drawn.epistemic_variance > 0).all()
    with pytest.raises(ValueError, match="site 'y': expected a model that returns what it predicts"):
        vd.predictive_distribution(uses, AutoMeanField(bnn), x, mode="moments")
    with pytest.raises(ValueError, match="on_unknown: expected 'error' or 'sample', got 'draw'"):
        vd.predictive_distribution(model, guide, x, mode="moments", on_unknown="draw")
    with pytest.raises(ValueError, match="on_unknown: expected mode='moments'"):
        vd.predictive_distribution(model, guide, x, on_unknown="sample")
    dropout = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2))
    other = vd.BayesianModule(dropout.train(), dist.Normal(0.0, 1.0), name="other")
    with pytest.raises(ValueError, match="got dropout on shapes"):
        vd.predictive_distribution(lambda x: pyro.sample("y", dist.Normal(other(x), 1.0).to_event(1)),
                                   AutoMeanField(other), x, mode="moments")  # fmt: skip


def test_a_padding_row_is_a_constant():
    net = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten())
    x = torch.tensor([[0, 1], [2, 0]])
    y, _ = forecast(net.double(), x)
    assert (y.epistemic_variance[0, :3] == 0).all() and (y.epistemic_variance[1, 3:] == 0).all()
    torch.testing.assert_close(y.epistemic_variance[0, 3:], torch.full((3,), math.exp(-1)))
    torch.testing.assert_close(y.mean, net(x))
