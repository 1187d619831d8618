"""predictive_distribution keeps the likelihood of any family: its densities, moments and shapes, draw by draw.

The oracle is a loop by hand: the guide is replaced by one that goes through given weights, so that each draw is known.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import AffineTransform, ExpTransform

import pyro_vd as vd
from pyro_vd.predict import blocks, likelihoods

N, DRAWS = 6, 5

# o: (N, 3) outputs of the model, some draw of the weights -> likelihood
FAMILIES = {
    "bernoulli": lambda o: dist.Bernoulli(logits=o[..., 0]),
    "bernoulli event": lambda o: dist.Bernoulli(probs=o.sigmoid()).to_event(1),
    "beta": lambda o: dist.Beta(o[..., 0].exp(), o[..., 1].exp()),
    "beta binomial": lambda o: dist.BetaBinomial(o[..., 0].exp(), 1.0, total_count=4),
    "binomial": lambda o: dist.Binomial(5, logits=o[..., 0]),
    "categorical": lambda o: dist.Categorical(logits=o),
    "categorical probs": lambda o: dist.Categorical(probs=o.softmax(-1)),
    "delta": lambda o: dist.Delta(o[..., 0].round()),
    "dirichlet": lambda o: dist.Dirichlet(o.exp()),
    "expanded": lambda o: dist.AsymmetricLaplace(o[..., 0], 1.0, 2.0).expand([N]),
    "gamma": lambda o: dist.Gamma(o[..., 0].exp(), 2.0),
    "laplace": lambda o: dist.Laplace(o[..., 0], 1.0),
    "lognormal": lambda o: dist.LogNormal(o[..., 0], o[..., 1].exp()),
    "low rank": lambda o: dist.LowRankMultivariateNormal(o, torch.ones(3, 1), o.exp()),
    "masked": lambda o: dist.Normal(o[..., 0], 1.0).mask(torch.arange(N) > 2),
    "masked event": lambda o: dist.Normal(o, 1.0).mask(torch.arange(3) > 0).to_event(1),
    "mixture": lambda o: dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros_like(o)), dist.Normal(o, 1)),
    "mixture of events": lambda o: dist.MixtureSameFamily(
        dist.Categorical(logits=o), dist.Normal(o.unsqueeze(-1) * torch.ones(2), 1.0).to_event(1)
    ),
    "multinomial": lambda o: dist.Multinomial(4, logits=o),
    "multivariate normal": lambda o: dist.MultivariateNormal(o, torch.eye(3) + 0.5),
    "multivariate normal, cholesky": lambda o: dist.MultivariateNormal(
        torch.zeros(3), scale_tril=torch.diag_embed(o.exp())
    ),
    "negative binomial": lambda o: dist.NegativeBinomial(4.0, logits=o[..., 0]),
    "normal": lambda o: dist.Normal(o[..., 0], 0.3),
    "normal event": lambda o: dist.Normal(o, o.exp()).to_event(1),
    "normal, two event dimensions": lambda o: dist.Normal(o.unsqueeze(-1).expand(N, 3, 2), 1.0).to_event(2),
    "one hot": lambda o: dist.OneHotCategorical(logits=o),
    "ordered logistic": lambda o: dist.OrderedLogistic(o[..., 0], torch.tensor([-1.0, 1.0])),
    "poisson": lambda o: dist.Poisson(o[..., 0].exp()),
    "relaxed": lambda o: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=o),
    "student": lambda o: dist.StudentT(5.0, o[..., 0], o[..., 1].exp()),
    "transformed": lambda o: dist.TransformedDistribution(
        dist.Normal(o[..., 0], 1.0), [AffineTransform(1.0, o[..., 1].exp()), ExpTransform()]
    ),
    "uniform": lambda o: dist.Uniform(o[..., 0] - 4, o[..., 0] + 4),
    "von Mises": lambda o: dist.VonMises(o[..., 0], 2.0),
    "zero inflated": lambda o: dist.ZeroInflatedDistribution(dist.Poisson(o[..., 0].exp()), gate=torch.tensor(0.3)),
    "zero inflated, logits": lambda o: dist.ZeroInflatedPoisson(o[..., 0].exp(), gate_logits=o[..., 1]),
}
LOOPS = ("ordered logistic",)  # changes a tensor in place when it is made


def program(family):
    """A model with a coefficient for each of three outputs, and a guide of it."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with vd.data_plate(100, len(x)):
            return pyro.sample("y", family(0.4 * x * w), obs=y)

    def guide(x, y=None):
        pyro.sample("w", vd.DropoutNormal(torch.tensor([1.0, -0.5, 0.2]), log_sigma2=-1.0).to_event(1))

    return model, guide


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


@pytest.fixture(params=["guide known", "guide run"])
def drawn(monkeypatch, request):
    """The weights of every draw, in the order of the draws; drawn by the guide, or from posteriors that it showed."""
    if request.param == "guide run":
        monkeypatch.setattr(blocks, "fixed_posteriors", lambda guide, call: None)
    seen: list = []
    original = likelihoods.DrawsOfLikelihoods._guide_values

    def spy(self, call):
        values = original(self, call)
        seen.append(values)
        return values

    of_block = likelihoods.DrawsOfLikelihoods._values_of_block

    def spy_block(self, index):
        before = len(seen)
        values = of_block(self, index)
        seen[before:] = [values]  # not the ones under vmap
        return values

    monkeypatch.setattr(likelihoods.DrawsOfLikelihoods, "_guide_values", spy)
    monkeypatch.setattr(likelihoods.DrawsOfLikelihoods, "_values_of_block", spy_block)
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mixture_is_that_of_the_likelihoods_of_the_draws(name, drawn):
    """log_prob, mean and variance against a loop over draws of the likelihood at that draw's weights."""
    family, x = FAMILIES[name], torch.randn(N, 1)
    model, guide = program(family)
    y = vd.predictive_distribution(model, guide, x, num_samples=DRAWS)["y"]
    weights = torch.cat([values["w"].reshape(-1, 3) for values in drawn])
    if name in LOOPS:  # the weights of the block that failed
        weights = torch.cat([weights[:1], weights[-DRAWS + 1 :]])
    assert len(weights) == DRAWS and len(weights.unique(dim=0)) == DRAWS
    each = [family(0.4 * x * w) for w in weights]
    assert type(y.draws) is type(each[0]) or isinstance(each[0], dist.ExpandedDistribution)
    assert y.draws.batch_shape == (DRAWS, N) and y.draws.event_shape == each[0].event_shape
    value = each[0].sample()
    with pyro.validation_enabled(False):
        by_hand = torch.stack([one.log_prob(value) for one in each])
    torch.testing.assert_close(y.log_prob(value), by_hand.logsumexp(0) - math.log(DRAWS))
    assert y.sample((2,)).shape == (2, N, *each[0].event_shape)
    try:
        means, variances = torch.stack([d.mean for d in each]), torch.stack([d.variance for d in each])
    except NotImplementedError:
        with pytest.raises(ValueError, match="site 'y': expected a likelihood with a mean, got"):
            _ = y.mean
        return
    if means.isnan().any():
        with pytest.raises(ValueError, match="mean"):
            _ = y.mean
        return
    torch.testing.assert_close(y.mean, means.mean(0))
    torch.testing.assert_close(y.aleatoric_variance, variances.mean(0))
    torch.testing.assert_close(y.epistemic_variance, (means - means.mean(0)).square().mean(0), atol=1e-12, rtol=1e-7)
    torch.testing.assert_close(y.stddev.square(), y.aleatoric_variance + y.epistemic_variance)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_run_side_by_side(name, monkeypatch):
    ran = []
    original = likelihoods.DrawsOfLikelihoods._block
    monkeypatch.setattr(
        likelihoods.DrawsOfLikelihoods, "_block", lambda self, n: ran.append(original(self, n)) or ran[-1]
    )
    vd.predictive_distribution(*program(FAMILIES[name]), torch.randn(N, 1), num_samples=DRAWS)
    assert [block is not None for block in ran] == [name not in LOOPS]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_pieces_are_the_whole(name, batch_size, drawn):
    """Same draws of the weights: the distribution of all points, cut or not."""
    x = torch.randn(N, 1)
    if name in ("expanded", "masked", "normal, two event dimensions"):
        return  # their shape is written for N points
    model, guide = program(FAMILIES[name])
    y = vd.predictive_distribution(model, guide, x, num_samples=DRAWS, batch_size=batch_size)["y"]
    weights = torch.cat([values["w"].reshape(-1, 3) for values in drawn])
    weights = torch.cat([weights[:1], weights[-DRAWS + 1 :]]) if name in LOOPS else weights
    each = [FAMILIES[name](0.4 * x * w) for w in weights]
    value = each[1].sample()
    with pyro.validation_enabled(False):
        by_hand = torch.stack([one.log_prob(value) for one in each])
    torch.testing.assert_close(y.log_prob(value), by_hand.logsumexp(0) - math.log(DRAWS))


def test_a_likelihood_that_cannot_be_stacked_is_named():
    class Hidden(dist.Normal):
        def __init__(self, centre, scale):
            super().__init__(centre + 1.0, scale)

        def expand(self, batch_shape, _instance=None):
            return self

    model, guide = program(lambda o: Hidden(o[..., 0], 1.0))
    with pytest.raises(TypeError, match="site 'y'.*stacked.*Hidden.*no attribute 'centre'"):
        vd.predictive_distribution(model, guide, torch.ones(N, 1), num_samples=2)

    class Other(dist.Normal):
        def __init__(self, loc, scale):
            super().__init__(loc + 1.0, scale)

        def expand(self, batch_shape, _instance=None):
            return self

    model, guide = program(lambda o: Other(o[..., 0], 1.0))
    with pytest.raises(TypeError, match="site 'y'.*makes again from its attributes.*'loc', 'scale'.*then differs"):
        vd.predictive_distribution(model, guide, torch.ones(N, 1), num_samples=2)


def test_a_family_that_changes_over_draws_is_an_error():
    model, guide = program(lambda o: dist.Normal(o[..., 0], 1.0) if o[0, 0] > 0.2 else dist.Laplace(o[..., 0], 1.0))
    with pytest.raises(ValueError, match="site 'y': expected the same family and shape in every draw"):
        vd.predictive_distribution(model, guide, torch.ones(N, 1), num_samples=20)
