"""Which sites a guide covers: never a label that a call is without, always a site that the data depends on."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vd as vd
from helpers.guide_cases import NAMES, prior_for, seeded
from pyro_vd import guides
from pyro_vd.guides import AutoMeanField, mixed_guide

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
REAL, POSITIVE = X[:, :2].clone(), X[:, :2].exp()
COUNTS, CLASSES = X[:, :2].abs().mul(3).round(), torch.tensor([0, 1, 1, 0, 1, 0])
ELBO = vd.TraceVD_ELBO(analytic_only=False)


def net(prior=None, name="net"):
    return vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, 1.0) if prior is None else prior, name=name)


def likelihood(distribution, labels, plate=lambda n: vd.data_plate(60, n)):
    """A model with one likelihood."""
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with plate(len(x)):
            return pyro.sample("y", distribution(output), obs=y)

    return model, (labels,)


class NoPlate:
    def __init__(self, size):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *args):
        pass


def without_plate():
    bnn = net()

    def model(x, y=None):
        return pyro.sample("y", dist.Normal(bnn(x), 1.0).to_event(2), obs=y)

    return model, (REAL,)


def with_noise(order, plate=lambda n: vd.data_plate(60, n)):
    bnn = net()

    def model(x, y=None):
        output = bnn(x) if order == "after" else None
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        output = bnn(x) if output is None else output
        with plate(len(x)):
            return pyro.sample("y", dist.Normal(output, scale).to_event(1), obs=y)

    return model, (REAL,)


def nested():
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with vd.data_plate(60, len(x), dim=-2), pyro.plate("outputs", 2, dim=-1):
            return pyro.sample("y", dist.Normal(output, 1.0), obs=y)

    return model, (REAL,)


def two_likelihoods(subsampled=True):
    bnn, count_head = net(), net(name="counts")

    def model(x, y=None, counts=None):
        output, rate = bnn(x), count_head(x)
        with vd.data_plate(60, len(x)) if subsampled else pyro.plate("rows", len(x)):
            pyro.sample("counts", dist.Poisson(rate.exp()).to_event(1), obs=counts)
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y)

    return model, (REAL, COUNTS)


def chain():
    """Each label depends on the one before."""
    bnn = net()

    def model(x, y=None):
        output, last = bnn(x)[:, 0], torch.zeros(())
        for i in range(len(x)):
            last = pyro.sample(f"y{i}", dist.Normal(output[i] + 0.5 * last, 1.0), obs=None if y is None else y[i])

    return model, (REAL[:, 0],)


def hierarchy():
    """Groups with a mean of their own, around one that is around a common one."""
    bnn = net()

    def model(x, y=None):
        center = pyro.sample("center", dist.Normal(0.0, 1.0))
        middle = pyro.sample("middle", dist.Normal(center, 1.0))
        with pyro.plate("groups", 2):
            group = pyro.sample("group", dist.Normal(middle, 1.0))
        output = bnn(x) + group
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y)

    return model, (REAL,)


MODELS = {
    "Normal": lambda: likelihood(lambda f: dist.Normal(f, 1.0).to_event(1), REAL),
    "StudentT": lambda: likelihood(lambda f: dist.StudentT(3.0, f, 1.0).to_event(1), REAL),
    "Gamma": lambda: likelihood(lambda f: dist.Gamma(f.exp(), 1.0).to_event(1), POSITIVE),
    "Categorical": lambda: likelihood(lambda f: dist.Categorical(logits=f), CLASSES),
    "Poisson": lambda: likelihood(lambda f: dist.Poisson(f.exp()).to_event(1), COUNTS),
    "mixture": lambda: likelihood(
        lambda f: dist.MixtureSameFamily(dist.Categorical(logits=f), dist.Normal(f, 1.0)), REAL[:, 0]
    ),
    "plate of another name": lambda: likelihood(
        lambda f: dist.Normal(f, 1.0).to_event(1), REAL, lambda n: vd.data_plate(60, n, "rows")
    ),
    "whole data": lambda: likelihood(lambda f: dist.Normal(f, 1.0).to_event(1), REAL, lambda n: vd.data_plate(n, n)),
    "Pyro's plate": lambda: likelihood(
        lambda f: dist.Normal(f, 1.0).to_event(1), REAL, lambda n: pyro.plate("rows", n)
    ),
    "Pyro's subsample": lambda: likelihood(
        lambda f: dist.Normal(f, 1.0).to_event(1), REAL, lambda n: pyro.plate("rows", 60, subsample_size=n)
    ),
    "no plate": without_plate,
    "noise before": lambda: with_noise("before"),
    "noise after": lambda: with_noise("after"),
    "noise, Pyro's plate": lambda: with_noise("after", lambda n: pyro.plate("rows", n)),
    "nested plates": nested,
    "two likelihoods": two_likelihoods,
    "two likelihoods, Pyro's plate": lambda: two_likelihoods(False),
    "chain": chain,
    "hierarchy": hierarchy,
}
LATENT = {"noise before": ["scale"], "noise after": ["scale"], "noise, Pyro's plate": ["scale"],
          "hierarchy": ["center", "middle", "group"]}  # fmt: skip
FIRST_CALLS = {
    "guide": lambda model, guide: guide(X),
    "posterior_predictive": lambda model, guide: vd.posterior_predictive(model, guide, X, num_samples=2),
    "mean": lambda model, guide: vd.posterior_predictive(model, guide, X, num_samples=2, mode="mean"),
    "local": lambda model, guide: vd.posterior_predictive(model, guide, X, num_samples=2, mode="local"),
    "Predictive": lambda model, guide: Predictive(model, guide=guide, num_samples=2)(X),
    "median": lambda model, guide: guide.median(X),
    "no_grad": lambda model, guide: torch.no_grad()(guide)(X),
}
MAKERS = {
    "all sites": AutoMeanField,
    "where": lambda model: AutoMeanField(model, where="*net*"),
    "where of all": lambda model: AutoMeanField(model, where="*[!e]"),
    "mixed": lambda model: mixed_guide(
        model, AutoMeanField(model, where="net*"), AutoMeanField(model, where="counts*")
    ),
}


def run(model, guide, labels, first_call):
    """KL sites, the loss and predictions of a guide after its first call, with parameters moved alike."""
    first_call(model, guide)
    guide(X, *labels)
    state = {key: value.clone() for key, value in guide.state_dict().items()}
    terms = seeded(5, ELBO.terms, model, guide, X, *labels)
    return list(terms.kl), terms.loss, state, set(vd.posterior_predictive(model, guide, X, num_samples=1))


@pytest.mark.parametrize("first", FIRST_CALLS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_first_call_without_labels_changes_nothing(kind, first):
    model, labels = MODELS[kind]()
    results = []
    for call in (lambda model, guide: guide(X, *labels), FIRST_CALLS[first]):
        pyro.clear_param_store()
        results.append(run(model, AutoMeanField(model), labels, call))
    expected, got = results
    names = [name for name in expected[0] if not name.endswith(("_unconstrained", "weight"))]
    assert names == LATENT.get(kind, [])
    assert got[0] == expected[0] and got[3] == expected[3] and got[2].keys() == expected[2].keys()
    assert {"y0", "y5"} <= got[3] if kind == "chain" else "y" in got[3]
    starts_random = kind in LATENT  # of a median, which Pyro estimates from draws
    for key, value in expected[2].items():
        assert starts_random or torch.equal(got[2][key], value), key
    if not starts_random:
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kind", ["Normal", "Categorical", "no plate", "Pyro's plate", "two likelihoods", "chain"])
def test_no_guide_covers_a_label_or_opens_its_plate(kind, maker):
    model, labels = MODELS[kind]()
    if maker == "mixed" and "two" not in kind:
        pytest.skip("one net")
    guide = MAKERS[maker](model)
    for size in (6, 4, 6):
        trace = poutine.trace(guide).get_trace(X[:size])
        assert all(name.endswith("weight") for name in trace.stochastic_nodes), trace.stochastic_nodes
        assert not {"data", "rows", "outputs"} & set(trace.nodes)
    trace = poutine.trace(guide).get_trace(X, *labels)
    assert all(name.endswith("weight") for name in trace.stochastic_nodes)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_leaves_labels_alone(name):
    bnn = net(prior_for(name))

    def model(x, y=None):
        output = bnn(x)
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(output, scale).to_event(1), obs=y)

    guide = getattr(guides, name)(model)
    assert vd.posterior_predictive(model, guide, X, num_samples=2)["y"].shape == (2, 6, 2)
    parameters = [id(parameter) for parameter in guide.parameters()]
    assert list(ELBO.terms(model, guide, X, REAL).kl) == ["net.weight", "scale", "scale_unconstrained"]
    assert [id(parameter) for parameter in guide.parameters()] == parameters


def test_some_labels_now_and_others_later():
    model, (y, counts) = two_likelihoods(subsampled=False)
    guide = AutoMeanField(model)
    guide(X, y)
    terms = ELBO.terms(model, guide, X, y, counts)
    assert set(terms.kl) == {"net.weight", "counts.weight"} and set(terms.nll) == {"y", "counts"}


def test_prediction_before_training_changes_no_buffer_and_no_parameter():
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        output = bnn(x)
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y)

    before = {key: value.clone() for key, value in bnn.state_dict().items()}
    guide = AutoMeanField(model)
    guide(X)
    guide(X, torch.zeros(6, 4))
    assert all(torch.equal(value, before[key]) for key, value in bnn.state_dict().items())


@pytest.mark.parametrize("made_within", [True, False])
def test_prediction_in_inference_mode_leaves_parameters_that_can_be_trained(made_within):
    model, (y,) = MODELS["noise after"]()
    guide = None if made_within else AutoMeanField(model)
    with torch.inference_mode():
        guide = AutoMeanField(model) if guide is None else guide
        assert vd.posterior_predictive(model, guide, X.clone(), num_samples=2)["y"].shape == (2, 6, 2)
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), ELBO).step(X, y)
    assert len(before) == 4 and not any(torch.equal(guide.state_dict()[key], value) for key, value in before.items())


def test_a_loss_without_labels_is_an_error_that_names_the_label():
    model, _ = MODELS["Normal"]()
    with pytest.raises(ValueError, match=r"site 'y': expected a guide that samples .*or obs= to the model"):
        vd.TraceVD_ELBO().loss(model, AutoMeanField(model), X)


@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_a_guide_that_covers_what_the_model_observes_is_an_error_that_names_it(estimator):
    model, (y,) = MODELS["Pyro's plate"]()
    pyros = AutoNormal(poutine.block(model, hide=["net.weight"]))

    def by_hand(x, y=None):
        pyro.sample("net.weight", vd.DropoutNormal(torch.zeros(2, 3), log_sigma2=-3.0).to_event(2))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    mixed = mixed_guide(model, AutoMeanField(model), pyros)
    mixed(X)  # Pyro's AutoNormal takes y for latent
    for guide in (by_hand, mixed):
        with pytest.raises(ValueError, match="site 'y': expected a guide without what the model observes"):
            vd.TraceVD_ELBO(estimator, analytic_only=False).loss(model, guide, X, y)
