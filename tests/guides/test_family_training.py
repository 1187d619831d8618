"""Every family trains on handwritten digits and reports its rates; proper priors by Monte Carlo, asked for by name."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from scipy import integrate
from torch import Tensor, nn

import pyro_vd as vd
from helpers.oracles import assert_mean_close
from pyro_vd import guides

pytestmark = pytest.mark.slow

STEPS, BATCH, TRAIN = 300, 100, 1437


def scale_mixture(dtype: torch.dtype = torch.float32) -> dist.MixtureSameFamily:
    """A scale mixture of Gaussians in place of the horseshoe: a spike, a slab and a tail."""
    weights, scales = torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.5, 3.0]], dtype=dtype)
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(torch.zeros_like(scales), scales))


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(x).float()[order] / 16, torch.from_numpy(y)[order]


def digits_model(prior, dataset_size: int = TRAIN):
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)), prior)

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(dataset_size, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def train(model, guide, estimator: str = "local", kl_weight: float = 1.0, **options) -> float:
    """The test error after a few hundred steps, by the mean prediction of ten networks; the KL warms up over half."""
    x, y = digits()
    elbo = vd.TraceVD_ELBO(estimator=estimator, kl_weight=0.0, **options)
    module = elbo(model, guide)
    module(x[:BATCH], y[:BATCH])
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    for step in range(STEPS):
        elbo.kl_weight = kl_weight * min(1.0, 2 * step / STEPS)
        batch = torch.randint(TRAIN, (BATCH,))
        optimizer.zero_grad()
        module(x[batch], y[batch]).backward()
        optimizer.step()
    drawn = vd.posterior_predictive(model, guide, x[TRAIN:], num_samples=15)["y"]
    return float((F.one_hot(drawn, 10).sum(0).argmax(-1) != y[TRAIN:]).float().mean())


IMPROPER, NORMAL = vd.ImproperLogUniform(), dist.Normal(0.0, 0.3)
# guide, its options, prior, weight of the KL, whether its rates are learned
FAMILIES = [
    ("AutoBernoulliDropout", {"dropout_rate": 0.2}, IMPROPER, 1.0, False),
    ("AutoBernoulliDropout", {"dropout_rate": 0.2}, NORMAL, 0.1, False),
    ("AutoConcreteDropout", {}, NORMAL, 0.1, True),
    ("AutoGaussianDropout", {"dropout_rate": 0.2}, IMPROPER, 1.0, False),
    ("AutoGaussianDropout", {"dropout_rate": 0.2, "correlated": True}, IMPROPER, 1.0, False),
    ("AutoVariationalDropout", {}, IMPROPER, 1 / 3, True),
    ("AutoVariationalDropout", {"correlated": True}, IMPROPER, 1.0, True),
    ("AutoSparseVD", {}, IMPROPER, 0.05, True),
    ("AutoARD", {}, IMPROPER, 0.05, True),
    ("AutoMeanField", {}, NORMAL, 0.1, True),
    ("AutoLowRank", {"rank": 2}, NORMAL, 0.1, True),
    ("AutoGroupSparse", {}, IMPROPER, 0.05, True),
]


@pytest.mark.parametrize(("name", "options", "prior", "kl_weight", "learned"), FAMILIES)
def test_every_family_trains_on_digits_and_reports_its_rates(name, options, prior, kl_weight, learned):
    model = digits_model(prior)
    guide = getattr(guides, name)(model, **options)
    guide(*(data[:2] for data in digits()))
    start = {site: guide.dropout_rate(site).detach().clone() for site in guide.weight_sites}
    error = train(model, guide, kl_weight=kl_weight)
    assert error < 0.2, error  # chance is 0.9
    for site, before in start.items():
        rate = guide.dropout_rate(site).detach()
        assert rate.isfinite().all() and (rate > 0).all() and (rate <= 1).all()
        assert torch.equal(rate, before) != learned
        print(f"{name} {options} error {error:.3f} {site} rate {float(rate.mean()):.4f}")
    report = vd.sparsity_report(guide)
    assert [row.site for row in report.rows] == list(start) and report.total.weights == 7400
    assert 0 <= report.sparsity < 1


@pytest.mark.parametrize("name", ["AutoVariationalDropout", "AutoLowRank"])
def test_training_works_with_one_weight_draw_for_every_example(name):
    options = {"correlated": True} if name == "AutoVariationalDropout" else {}
    model = digits_model(IMPROPER)
    assert train(model, getattr(guides, name)(model, **options), "shared", kl_weight=0.05) < 0.2


PRIORS = {
    "StudentT": lambda dtype: dist.StudentT(torch.tensor(3.0, dtype=dtype), 0.0, 0.4),
    "MixtureSameFamily": scale_mixture,
    "Laplace": lambda dtype: dist.Laplace(torch.tensor(0.0, dtype=dtype), 0.5),
}


@pytest.mark.parametrize("guide_name", ["AutoMeanField", "AutoSparseVD"])
@pytest.mark.parametrize("prior_name", PRIORS)
def test_a_prior_without_a_rule_is_an_error_until_monte_carlo_is_asked_for(prior_name, guide_name):
    bnn = vd.BayesianModule(nn.Linear(4, 2), PRIORS[prior_name](torch.float32))
    guide = getattr(guides, guide_name)(bnn)
    expected = rf"site 'net.weight': .*DropoutNormal.to_event\(2\) and {prior_name}.to_event\(2\).*analytic_only=False"
    with pytest.raises(ValueError, match=expected):
        vd.TraceVD_ELBO().loss(bnn, guide, torch.ones(3, 4))
    assert math.isfinite(vd.TraceVD_ELBO(analytic_only=False).loss(bnn, guide, torch.ones(3, 4)))


def test_the_rule_for_a_normal_prior_is_used_and_without_noise():
    bnn = vd.BayesianModule(nn.Linear(4, 2), dist.Normal(0.1, 0.7))
    guide = guides.AutoMeanField(bnn, init_log_sigma2=-2.0)
    for elbo in (vd.TraceVD_ELBO(), vd.TraceVD_ELBO(analytic_only=False)):
        first, second = (elbo.terms(bnn, guide, torch.ones(3, 4)).kl["net.weight"].detach() for _ in range(2))
        loc = guide.locs.net.weight.detach()
        q, p = torch.distributions.Normal(loc, math.exp(-1)), torch.distributions.Normal(0.1, 0.7)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, torch.distributions.kl_divergence(q, p).sum())


def quadrature_kl(loc: float, scale: float, log_prior) -> float:
    """KL(N(loc, scale**2) || prior) of one weight."""

    def integrand(w: float) -> float:
        log_q = -0.5 * ((w - loc) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))
        return math.exp(log_q) * (log_q - log_prior(w))

    ends = sorted({loc - 12 * scale, 0.0, loc, loc + 12 * scale})
    return sum(integrate.quad(integrand, a, b, limit=200)[0] for a, b in zip(ends, ends[1:], strict=False))


@pytest.mark.parametrize("guide_name", ["AutoMeanField", "AutoSparseVD"])
@pytest.mark.parametrize("estimator", ["local", "shared", "per_example"])
@pytest.mark.parametrize("prior_name", PRIORS)
def test_the_monte_carlo_kl_has_the_mean_of_quadrature(prior_name, estimator, guide_name):
    """Also under "local", where the model draws no weight: the KL has a draw of its own."""
    prior = PRIORS[prior_name](torch.float64)
    bnn = vd.BayesianModule(nn.Linear(2, 2).double(), prior)
    guide = getattr(guides, guide_name)(bnn, init_log_sigma2=-1.0)
    x = torch.ones(3, 2).double()
    guide(x)
    locs = guide.locs.net.weight.detach().flatten().tolist()
    expected = sum(
        quadrature_kl(loc, math.exp(-0.5), lambda w: float(prior.log_prob(torch.tensor(w).double()))) for loc in locs
    )
    elbo = vd.TraceVD_ELBO(estimator=estimator, analytic_only=False)
    estimates = torch.stack([elbo.terms(bnn, guide, x).kl["net.weight"].detach() for _ in range(300)])
    assert estimates.std() > 0.01
    assert_mean_close(estimates, torch.tensor(expected).double())


@pytest.mark.parametrize("estimator", ["local", "shared", "per_example"])
def test_the_monte_carlo_kl_of_equal_distributions_is_zero_in_every_draw(estimator):
    """The prior is the posterior, written as a mixture, which has no rule: log q - log p at one and the same weight."""
    same = dist.Normal(torch.full((2,), 0.3).double(), math.exp(-0.5))
    bnn = vd.BayesianModule(nn.Linear(2, 2).double(), dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), same))
    guide = guides.AutoMeanField(bnn, init_log_sigma2=-1.0)
    x = torch.ones(3, 2).double()
    guide(x)
    with torch.no_grad():
        guide.locs.net.weight.fill_(same.loc[0])
    elbo = vd.TraceVD_ELBO(estimator=estimator, analytic_only=False)
    for _ in range(5):
        assert abs(float(elbo.terms(bnn, guide, x).kl["net.weight"].detach())) < 1e-6


@pytest.mark.parametrize("prior_name", ["StudentT", "MixtureSameFamily"])
def test_proper_priors_train_with_sparse_guides(prior_name):
    model = digits_model(PRIORS[prior_name](torch.float32))
    guide = guides.AutoSparseVD(model, init_log_sigma2=-8.0)
    assert train(model, guide, kl_weight=0.1, analytic_only=False) < 0.2
    assert all(guide.log_alpha(site).isfinite().all() for site in guide.weight_sites)


def horseshoe(x):
    """Half-Cauchy scales and weights normal given them: a hierarchy in plain Pyro."""
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(0.5).double()).expand([1, 2]).to_event(2))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 2).double(), scale).to_event(2))
    with vd.data_plate(len(x), len(x)):
        pyro.sample("y", dist.Normal(F.linear(x, weight), 1.0).to_event(1), obs=torch.zeros(len(x), 1).double())


def test_a_horseshoe_written_as_a_hierarchy_has_the_kl_of_quadrature():
    """The scales by Monte Carlo, the weights given the scales by the Normal rule."""
    guide = AutoGuideList(horseshoe)
    guide.append(AutoNormal(pyro.poutine.block(horseshoe, expose=["scale"]), init_scale=0.1))
    guide.append(guides.AutoMeanField(horseshoe, init_log_sigma2=-1.0, where="weight"))
    x = torch.ones(3, 2).double()
    guide(x)
    with torch.no_grad():
        guide[1].locs.weight.copy_(torch.tensor([[0.1, -0.2]]))
    at, width = guide[0].locs.scale.detach().flatten().tolist(), 0.1

    def weight_kl(u: float, loc: float) -> float:
        return 0.5 * (math.exp(-1) + loc**2) / math.exp(2 * u) + u  # the scale is exp(u); -0.5 * log exp(-1) - 0.5 = 0

    def log_prior(u: float) -> float:
        return math.log(2 / (math.pi * 0.5)) - math.log1p((math.exp(u) / 0.5) ** 2) + u

    expected = torch.zeros(2).double()
    for loc, m in zip((0.1, -0.2), at, strict=True):

        def weight_integrand(u: float, loc: float = loc, m: float = m) -> float:
            return math.exp(-0.5 * ((u - m) / width) ** 2) / (width * math.sqrt(2 * math.pi)) * weight_kl(u, loc)

        expected[0] += integrate.quad(weight_integrand, m - 12 * width, m + 12 * width, limit=200)[0]
        expected[1] += quadrature_kl(m, width, log_prior)
    for estimator in ("local", "shared"):
        # Pyro has a rule for the point mass that AutoNormal gives the scales.
        terms = [vd.TraceVD_ELBO(estimator=estimator).terms(horseshoe, guide, x) for _ in range(600)]
        estimates = torch.stack([torch.stack([t.kl["weight"], t.kl_total - t.kl["weight"]]).detach() for t in terms])
        assert_mean_close(estimates.double(), expected)
