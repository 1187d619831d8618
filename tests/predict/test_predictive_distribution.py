"""predictive_distribution over programs: sites, labels, plates, modes, pieces, containers, fresh guides, bad input."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from copy import deepcopy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vd as vd
from helpers.oracles import standard_errors
from helpers.predictive import classifier, small_net
from pyro_vd.guides import AutoMeanField


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def test_a_first_program():
    model, guide = classifier(small_net())
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    forecast = vd.predictive_distribution(model, guide, x)["y"]
    assert forecast.probs.shape == (8, 3) and forecast.mutual_information().shape == (8,)
    torch.testing.assert_close(forecast.probs.sum(-1), torch.ones(8))
    torch.testing.assert_close(forecast.log_prob(y).exp(), forecast.probs[torch.arange(8), y])
    assert (forecast.mutual_information() > 0.01).all()
    assert forecast.num_samples == 100 and not forecast.draws.logits.requires_grad


def test_the_draws_have_the_moments_of_the_posterior():
    """Of a linear model: mean x @ loc, epistemic variance x**2 @ variance, within standard errors of 4,000 draws."""
    x = torch.tensor([[1.0, 2.0, -1.0], [0.5, 1.5, 1.0]])
    bnn = vd.BayesianModule(nn.Linear(3, 1, bias=False), dist.Normal(0.0, 1.0))

    def model(x):
        pyro.sample("y", dist.Normal(bnn(x).squeeze(-1), 0.3))

    guide = AutoMeanField(bnn, init_log_sigma2=-1.0)
    for mode in ("weights", "local"):
        y = vd.predictive_distribution(model, guide, x, num_samples=4000, mode=mode)["y"]
        loc, variance = guide.posterior("net.weight").loc[0].detach(), math.exp(-1)
        expected = x.square().sum(-1) * variance
        assert ((y.mean - x @ loc).abs() < standard_errors(2) * (expected / 4000).sqrt()).all()
        assert ((y.epistemic_variance / expected - 1).abs() < standard_errors(2) * math.sqrt(2 / 4000)).all()
        torch.testing.assert_close(y.aleatoric_variance, torch.full((2,), 0.09))
        centred = y.draws.loc - y.draws.loc.mean(0)
        covariance = centred.prod(-1).mean()
        true = (x[0] * x[1]).sum() * variance if mode == "weights" else torch.tensor(0.0)
        assert abs(covariance - true) < standard_errors() * centred.prod(-1).std() / math.sqrt(4000)


def test_labels_in_the_call_change_nothing():
    model, guide = classifier(small_net())
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    guide(x, y)  # sees the model, which draws
    logits = []
    for call in ((x,), (x, y)):
        pyro.set_rng_seed(3)
        logits.append(vd.predictive_distribution(model, guide, *call, num_samples=5)["y"].draws.logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("mode", ["weights", "local", "mean"])
@pytest.mark.parametrize("batch_size", [None, 7, 40])
def test_more_points_than_the_data_set_has(mode, batch_size):
    model, guide = classifier(small_net(), dataset_size=10)
    x = torch.randn(101, 4)
    forecast = vd.predictive_distribution(model, guide, x, num_samples=3, mode=mode, batch_size=batch_size)["y"]
    assert forecast.probs.shape == (101, 3)
    assert vd.posterior_predictive(model, guide, x, num_samples=2, mode=mode, batch_size=batch_size)["y"].shape == (
        2,
        101,
    )
    with pytest.raises(ValueError, match="dataset_size"):
        model(x)  # in training a plate has its say


def test_more_points_than_a_plate_of_pyro_takes():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(x * w, 1.0))

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    assert vd.predictive_distribution(model, guide, torch.ones(30), num_samples=3)["y"].mean.shape == (30,)


def test_mode_mean_is_the_mean_network():
    net = small_net()
    model, guide = classifier(net)
    x = torch.randn(6, 4)
    guide(x)
    with torch.no_grad():
        for layer, site in ((net[0], "net.0.weight"), (net[2], "net.2.weight")):
            layer.weight.copy_(guide.posterior(site).loc)
    forecast = vd.predictive_distribution(model, guide, x, mode="mean")["y"]
    assert forecast.num_samples == 1
    torch.testing.assert_close(forecast.probs, net(x).softmax(-1))


def test_mode_mean_integrates_over_what_the_model_draws():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x * w + z, 1.0).to_event(1))

    def guide(x):
        pyro.sample("w", dist.Normal(2.0, 1.0))

    y = vd.predictive_distribution(model, guide, torch.ones(3), num_samples=50, mode="mean")
    assert set(y) == {"y", "z"} and y["y"].num_samples == 50 and (y["y"].epistemic_variance > 0.2).all()


def test_several_sites_and_one_that_uses_another():
    def model(x, count=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(x * w, 0.1))
            pyro.sample("count", dist.Poisson(rate), obs=count)
        pyro.factor("penalty", -(w**2))

    def guide(x, count=None):
        pyro.sample("w", vd.DropoutNormal(torch.tensor(0.5), log_sigma2=-3.0))

    both = vd.predictive_distribution(model, guide, torch.ones(4), num_samples=6)
    assert set(both) == {"rate", "count"}
    assert isinstance(both["count"].draws, dist.Poisson) and len(both["count"].draws.rate.unique()) == 24
    assert set(vd.predictive_distribution(model, guide, torch.ones(4), num_samples=2, sites=["count"])) == {"count"}
    assert set(vd.predictive_distribution(model, guide, torch.ones(4), num_samples=2, sites="rate")) == {"rate"}


def test_a_mask_of_a_handler_is_the_likelihood_s():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            pyro.sample("y", dist.Normal(x * w, 1.0))

    def guide(x):
        pyro.sample("w", dist.Normal(1.0, 0.1))

    y = vd.predictive_distribution(model, guide, torch.tensor([1.0, -1.0]), num_samples=4)["y"]
    assert y.log_prob(torch.tensor([0.0, math.nan])).tolist()[1] == 0.0 and y.log_prob(torch.zeros(2))[0] < -0.9


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize("batch_size", [None, 2, 3])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: ({"a": a, "b": b},),
        lambda a, b: ([a, (b,)],),
        lambda a, b: (Pair(a, b),),
        lambda a, b: (OrderedDict(a=a, b=[b]),),
    ],
)
def test_dicts_lists_and_keywords(wrap, batch_size):
    def flat(inputs):
        if isinstance(inputs, torch.Tensor):
            return [inputs]
        parts = inputs.values() if isinstance(inputs, dict) else inputs
        return [leaf for part in parts for leaf in flat(part)]

    def model(inputs, *, scale, table, y=None):
        assert table.shape == (3,)
        a, b = flat(inputs)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(a)):
            pyro.sample("y", dist.Normal((a + b) * w, scale), obs=y)

    def guide(*args, **kwargs):
        pyro.sample("w", vd.DropoutNormal(torch.tensor(0.5), log_sigma2=-1.0))

    a, b = torch.arange(5.0), torch.ones(5)
    call = {"scale": 2 + torch.arange(5.0), "table": torch.ones(3), "num_samples": 4, "batch_size": batch_size}
    y = vd.predictive_distribution(model, guide, *wrap(a, b), **call)["y"]
    torch.testing.assert_close(y.draws.loc / (a + b), (y.draws.loc / (a + b))[:, :1].expand(4, 5))
    assert torch.equal(y.draws.scale, (2 + torch.arange(5.0)).expand(4, 5))


def test_a_fresh_guide_and_a_loaded_one():
    net = small_net()
    model, guide = classifier(net)
    x = torch.randn(5, 4)
    pyro.set_rng_seed(0)
    vd.predictive_distribution(model, guide, x, num_samples=4)  # makes the guide's parameters
    with torch.no_grad():
        for loc in guide.locs.parameters():
            loc.add_(0.5)
    pyro.set_rng_seed(0)
    first = vd.predictive_distribution(model, guide, x, num_samples=4)["y"].probs
    state = guide.state_dict()
    pyro.clear_param_store()
    model, other = classifier(deepcopy(net))
    other(x)
    other.load_state_dict(state)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(vd.predictive_distribution(model, other, x, num_samples=4)["y"].probs, first)


def test_sites_of_the_guide_inside_a_plate():
    def model(x):
        with vd.data_plate(20, len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x + z, 1.0))

    def guide(x):
        with vd.data_plate(20, len(x)):
            pyro.sample("z", dist.Normal(x, 0.1))

    y = vd.predictive_distribution(model, guide, torch.ones(6), num_samples=5)["y"]
    assert len(y.draws.loc.unique()) == 30
    with pytest.raises(ValueError, match=r"without sites inside a plate, got \['z'\].*predictive_distribution once"):
        vd.predictive_distribution(model, guide, torch.ones(6), num_samples=2, batch_size=4)


def test_examples_inside_one_event_cannot_be_cut():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.MultivariateNormal(x * w, torch.eye(len(x))))

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    assert vd.predictive_distribution(model, guide, torch.ones(5), num_samples=2)["y"].event_shape == (5,)
    with pytest.raises(ValueError, match="site 'y' whose examples are its batch, got MultivariateNormal"):
        vd.predictive_distribution(model, guide, torch.ones(5), num_samples=2, batch_size=2)


def test_weights_used_twice_in_mode_local():
    layer = nn.Linear(3, 3)
    bnn = vd.BayesianModule(nn.Sequential(layer, nn.Tanh(), layer), dist.Normal(0.0, 1.0))

    def model(x):
        pyro.sample("y", dist.Normal(bnn(x), 1.0).to_event(2))

    guide, x = AutoMeanField(bnn), torch.randn(4, 3)
    with pytest.raises(ValueError, match="net.0.weight"):
        vd.predictive_distribution(model, guide, x, num_samples=3, mode="local")
    for options in ({"shared_sites": ["net.0.weight"]}, {"reuse": "independent"}):
        y = vd.predictive_distribution(model, guide, x, num_samples=3, mode="local", **options)["y"]
        assert y.mean.shape == (4, 3)


def test_bad_input():
    model, guide = classifier(small_net())
    x = torch.randn(5, 4)
    for options, text in (
        ({"mode": "draws"}, "mode: expected one of 'weights', 'local', 'mean'.*got 'draws'"),
        ({"num_samples": 0}, "num_samples: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"sites": ["label"]}, r"sites: expected names of \['y'\], got \['label'\]"),
        ({"sites": ["net.0.weight"]}, r"sites: expected names of \['y'\].*posterior_predictive returns their draws"),
    ):
        with pytest.raises(ValueError, match=text):
            vd.predictive_distribution(model, guide, x, **options)
    with pytest.raises(ValueError, match=r"got none: the guide samples \['w'\]"):
        one = lambda: pyro.sample("w", dist.Normal(0.0, 1.0))  # noqa: E731
        vd.predictive_distribution(one, one)
    net = small_net()
    model, guide = classifier(net)
    guide(x)
    with torch.no_grad():
        net[0].bias.fill_(math.nan)
    with pytest.raises(ValueError, match="Categorical"):
        vd.predictive_distribution(model, guide, x, num_samples=3)


def test_weights_used_twice_are_found_in_mode_local():
    layer = nn.Linear(3, 3)
    bnn = vd.BayesianModule(nn.Sequential(layer, nn.Tanh(), layer), dist.Normal(0.0, 1.0))

    def model(x):
        pyro.sample("y", dist.Normal(bnn(x), 1.0).to_event(2))

    guide = AutoMeanField(bnn)
    with pytest.warns(UserWarning, match="used twice in one run"):
        y = vd.predictive_distribution(
            model, guide, torch.randn(4, 3), num_samples=3, mode="local", shared_sites="auto"
        )
    assert y["y"].mean.shape == (4, 3)


def test_data_of_another_library_are_named():
    model, guide = classifier(small_net())
    with pytest.raises(TypeError, match="write torch.as_tensor"):
        vd.predictive_distribution(model, guide, torch.randn(5, 4).numpy())
    with pytest.raises(TypeError, match="model: expected a Pyro model"):
        vd.predictive_distribution(None, guide, torch.randn(5, 4))
