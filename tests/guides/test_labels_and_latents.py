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
from pyro_vd.guides import AutoMeanField, AutoSparseVD, AutoVariationalDropout, mixed_guide

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


# What is latent


def latent_in(model, *args, **options):
    guide = AutoMeanField(model, **options)
    guide(*args)
    return list(guide(*args))


@pytest.mark.parametrize("labels", [True, False])
def test_local_latents_of_a_plate_without_subsampling_are_covered(labels):
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with pyro.plate("rows", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(output + shift.unsqueeze(-1), 1.0).to_event(1), obs=y)

    assert latent_in(model, X, *([REAL] if labels else [])) == ["net.weight", "shift"]
    guide = AutoMeanField(model)
    for mode in ("weights", "local", "mean"):  # the guide opens the plate
        vd.posterior_predictive(model, guide, X, num_samples=1, mode=mode)
    terms = ELBO.terms(model, guide, X, REAL)
    assert set(terms.kl) == {"net.weight", "shift", "shift_unconstrained"}


def local_model(plate):
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with plate(len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(output + shift.unsqueeze(-1), 1.0).to_event(1), obs=y)

    return model


SUBSAMPLING = {
    "data_plate": lambda n: vd.data_plate(60, n),
    "data_plate of all": lambda n: vd.data_plate(n, n),
    "subsample_size": lambda n: pyro.plate("data", 60, subsample_size=n),
    "subsample": lambda n: pyro.plate("data", 60, subsample=torch.arange(n)),
}


@pytest.mark.parametrize("plate", SUBSAMPLING)
def test_a_local_latent_in_a_minibatch_is_left_to_a_guide_by_hand(plate):
    model = local_model(SUBSAMPLING[plate])
    guide = AutoMeanField(model)
    assert list(guide(X, REAL)) == ["net.weight"]
    with pytest.raises(ValueError, match=r"site 'shift': expected a guide that samples .*by hand \(pyro_vd.guides"):
        ELBO.loss(model, guide, X, REAL)
    for mode in ("weights", "local", "mean"):
        draws = vd.posterior_predictive(model, guide, X, num_samples=3, mode=mode)
        assert set(draws) == {"shift", "y"} and len(draws["shift"].unique()) == 18  # of its prior

    def by_hand(x, y=None):
        with SUBSAMPLING[plate](len(x)):
            pyro.sample("shift", dist.Normal(pyro.param("loc", torch.zeros(60))[: len(x)], 0.1))

    whole = mixed_guide(model, AutoMeanField(model, where="net.*"), by_hand)
    for size in (6, 4):
        assert set(ELBO.terms(model, whole, X[:size], REAL[:size]).kl) == {"net.weight", "shift"}
        draws = vd.posterior_predictive(model, whole, X[:size], num_samples=3)
        assert set(draws) == {"y"}


def test_a_latent_seen_through_a_factor_alone_and_one_that_a_pseudo_observation_depends_on():
    bnn = net()

    def model(x, y=None):
        pyro.factor("penalty", -pyro.sample("penalised", dist.Normal(0.0, 1.0)).square())
        centred = pyro.sample("centred", dist.Normal(0.0, 1.0))
        pyro.sample("constraint", dist.Normal(0.0, 1.0), obs=centred + bnn(x).mean())

    assert latent_in(model, X) == ["penalised", "centred", "net.weight"]


def test_what_obs_mask_hides_is_covered():
    bnn = net()

    def model(x, y=None, known=None):
        output = bnn(x)
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y, obs_mask=known)

    known = X[:, 0] > 0
    assert latent_in(model, X, REAL, known) == ["net.weight", "y_unobserved"]
    guide = AutoMeanField(model)
    guide(X)
    assert set(ELBO.terms(model, guide, X, REAL).kl) == {"net.weight"}


def test_a_prior_scale_of_hand_written_weights_is_covered():
    def model(x, y=None):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        weight = pyro.sample("w", dist.Normal(torch.zeros(3, 2), scale).to_event(2))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)

    guide = mixed_guide(model, AutoMeanField(model, where="w"), AutoNormal(poutine.block(model, expose=["scale"])))
    assert set(guide(X, REAL)) == {"w", "scale"}
    assert set(AutoMeanField(model, where=["w"])(X, REAL)) == {"w"}


def test_a_weight_of_a_model_without_data_is_covered_where_it_is_named():
    def model(x):
        return x @ pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))

    assert latent_in(model, X, where="w") == ["w"]
    with pytest.raises(ValueError, match=r"a latent site that is a weight.*, got the sites \['w'\]; name the weights"):
        AutoMeanField(model)(X)
    with pytest.raises(ValueError, match=r"a latent site that matches where, got the sites \['w'\]"):
        AutoMeanField(model, where="v")(X)


@pytest.mark.parametrize("kind, message", [
    (dist.Bernoulli(0.5), "cannot handle discrete sample site 'sign'.*enumerat"),
    (dist.Categorical(torch.ones(2)), "site 'sign': expected a guide that samples every latent site"),
])  # fmt: skip
def test_a_discrete_latent_is_an_error_that_names_it(kind, message):
    bnn = net()

    def model(x, y=None):
        sign = pyro.sample("sign", kind)
        with vd.data_plate(60, len(x)):
            pyro.sample("y", dist.Normal(bnn(x) * sign, 1.0).to_event(1), obs=y)

    guide = AutoMeanField(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            ELBO.loss(model, guide, X, REAL)
        assert list(guide.state_dict()) == ["locs.net.weight", "log_sigma2s.net.weight"]


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


def test_the_plates_of_covered_sites_are_opened_and_no_others():
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with pyro.plate("groups", 2):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(output + shift, 1.0).to_event(1), obs=y)

    for guide in (AutoMeanField(model), mixed_guide(model, AutoMeanField(model))):
        for args in ((X,), (X, REAL), (X[:4], REAL[:4])):
            names = set(poutine.trace(guide).get_trace(*args).nodes)
            assert "groups" in names and "data" not in names
    for part in (AutoSparseVD, AutoVariationalDropout):
        names = set(poutine.trace(part(model, where="net.*")).get_trace(X).nodes)
        assert not {"groups", "data"} & names
