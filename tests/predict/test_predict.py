"""posterior_predictive: the sites of pyro.infer.Predictive, coherent draws, pieces of data, blocks."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import nn

import pyro_vd as vd
from helpers.oracles import assert_mean_close, assert_variance_close, standard_errors
from pyro_vd.guides import AutoMeanField, AutoSparseVD
from pyro_vd.predict import blocks, posteriors


@pytest.fixture
def program():
    """A net of two layers with wide posteriors, in float64: model, function-only model, guide, net, data."""
    torch.set_default_dtype(torch.float64)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)).eval()
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(x, y=None):
        logits = pyro.deterministic("logits", bnn(x))
        with vd.data_plate(100, len(x)):
            return pyro.sample("y", dist.Normal(logits, 0.3).to_event(1), obs=y)

    def function(x):
        return pyro.deterministic("f", bnn(x))

    x = torch.randn(10, 4)
    guide = AutoMeanField(model, init_log_sigma2=-1.0)
    guide(x, torch.randn(10, 2))
    return model, function, guide, net, x


def predict(seed, *args, **kwargs):
    pyro.set_rng_seed(seed)
    return vd.posterior_predictive(*args, **kwargs)


@pytest.mark.parametrize("mode", ["weights", "local", "mean"])
def test_sites_and_shapes_are_those_of_predictive(program, mode):
    model, _, guide, _, x = program
    samples = vd.posterior_predictive(model, guide, x, num_samples=7, mode=mode)
    reference = Predictive(model, guide=guide, num_samples=7, return_sites=("logits", "y"))(x)
    # Pyro gives a site outside the plate an axis of size 1 for it; here a site has the shape it has in the model.
    assert {k: v.shape for k, v in samples.items()} == {k: v.squeeze(1).shape for k, v in reference.items()}
    assert not any(value.requires_grad for value in samples.values())


def test_a_draw_is_the_model_at_a_draw_of_the_guide(program):
    """Exactly: by hand, and by Predictive given the same weights."""
    _, function, guide, net, x = program
    samples = predict(3, function, guide, x, num_samples=4, return_sites=["f", *guide.posteriors()])
    stacked = {site: samples[site] for site in guide.posteriors()}
    assert all(len(values.unique(dim=0)) == 4 for values in stacked.values())
    for draw in range(4):
        parameters = {site.removeprefix("net."): values[draw] for site, values in stacked.items()}
        by_hand = torch.func.functional_call(net, parameters, (x,))
        torch.testing.assert_close(samples["f"][draw], by_hand, rtol=1e-12, atol=1e-12)
    of_pyro = Predictive(function, stacked, return_sites=("f",))(x)["f"]
    torch.testing.assert_close(samples["f"], of_pyro)
    assert torch.equal(samples["f"], predict(3, function, guide, x, num_samples=4)["f"]), "the seed gives the draws"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["weights", "local"])
def test_moments_of_a_linear_model(mode):
    """y ~ N(x @ loc, x**2 @ variance + 0.3**2); two inputs covary by x1 * variance * x2 in mode "weights" alone.

    4000 draws; each assertion fails by chance once in 1e6 fixed seeds.
    """
    torch.set_default_dtype(torch.float64)
    bnn = vd.BayesianModule(nn.Linear(3, 1, bias=False), vd.ImproperLogUniform())

    def model(x, y=None):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(100, len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    x = torch.tensor([[1.0, 2.0, -1.0], [0.5, 1.5, 1.0]])
    guide = AutoSparseVD(model, init_log_sigma2=-1.0)
    guide(x, torch.zeros(2))
    loc, variance = guide.posterior("net.weight").loc[0].detach(), math.exp(-1)
    y = vd.posterior_predictive(model, guide, x, num_samples=4000, mode=mode)["y"]
    assert_mean_close(y, x @ loc)
    assert_variance_close(y, x.square().sum(-1) * variance + 0.09)
    covariance = (x[0] * x[1]).sum() * variance if mode == "weights" else torch.tensor(0.0)
    assert_mean_close((y - x @ loc).prod(-1), covariance)


@pytest.mark.slow
def test_two_nearly_equal_inputs(program):
    """In mode "weights" one function goes through both; in mode "local" their noise is unrelated."""
    _, function, guide, _, x = program
    number = 2000
    pair = torch.stack([x[0], x[0] + 1e-4])
    for mode in ("weights", "local"):
        f = vd.posterior_predictive(function, guide, pair, num_samples=number, mode=mode)["f"][..., 0]
        correlation = torch.corrcoef(f.T)[0, 1].item()
        if mode == "weights":
            assert correlation > 0.999
        else:  # the standard error of a correlation of 0 is 1 / sqrt(number)
            assert abs(correlation) < standard_errors() / math.sqrt(number)


@pytest.mark.parametrize("mode", ["weights", "mean"])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_a_draw_stays_the_same_draw_over_pieces(program, mode, batch_size):
    _, function, guide, _, x = program
    whole = predict(1, function, guide, x, num_samples=3, mode=mode)
    pieces = predict(1, function, guide, x, num_samples=3, mode=mode, batch_size=batch_size)
    assert pieces["f"].shape == (3, 10, 2)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


def test_local_pieces_have_noise_of_their_own(program):
    _, function, guide, _, x = program
    f = vd.posterior_predictive(function, guide, x[:1].repeat(6, 1), num_samples=2, mode="local", batch_size=2)["f"]
    assert f.shape == (2, 6, 2) and len(f.unique()) == f.numel()


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_pieces_cut_data_alone(batch_size):
    """Keyword arguments of the length of the data are cut; other arguments, and sites without examples, are not.

    The site "scales" is as long as a piece of 5.
    """

    def model(x, table, flag=None, offset=None):
        assert flag == "as it is" and table.shape == (4,)
        weight = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.deterministic("square", weight**2)
        pyro.deterministic("scales", torch.arange(5.0) * weight)
        pyro.deterministic("f", x * weight + offset + table.sum())

    def guide(x, table, flag=None, offset=None):
        pyro.sample("w", dist.Normal(2.0, 1.0))

    call = (model, guide, torch.arange(10.0), torch.ones(4))
    keywords = {"flag": "as it is", "offset": torch.arange(10.0) ** 2, "num_samples": 3}
    whole = predict(2, *call, **keywords)
    pieces = predict(2, *call, **keywords, batch_size=batch_size)
    assert {site: value.shape for site, value in whole.items()} == {"square": (3,), "scales": (3, 5), "f": (3, 10)}
    torch.testing.assert_close(pieces, whole)


def test_mode_mean_is_the_mean_network(program):
    _, function, guide, net, x = program
    with torch.no_grad():
        for loc in guide.locs.parameters():
            loc.add_(0.1)
        for layer, site in ((net[0], "net.0.weight"), (net[3], "net.3.weight")):
            layer.weight.copy_(guide.posterior(site).loc)
    f = vd.posterior_predictive(function, guide, x, num_samples=2, mode="mean")["f"]
    for drawn in f:
        assert torch.equal(drawn, net(x))


def test_draws_are_not_one_draw(program):
    _, function, guide, _, x = program
    for mode in ("weights", "local"):
        f = vd.posterior_predictive(function, guide, x, num_samples=6, mode=mode)["f"]
        assert len(f.unique(dim=0)) == 6
        f[0] = 0.0
        assert (f[1:] != 0).all()


@pytest.mark.parametrize("batch_size", [None, 8])
def test_draws_of_the_weights_fit_a_bound(program, batch_size, monkeypatch):
    """As many at a time as the bound allows; each weight drawn once a draw, whatever the number of pieces."""
    _, function, guide, _, x = program
    drawn: list[tuple[int, int]] = []
    original = posteriors.WeightDraws.draw

    def spy(self, number):
        drawn.append((number, self.posterior.loc.numel()))
        return original(self, number)

    monkeypatch.setattr(posteriors.WeightDraws, "draw", spy)
    one = 8 * (4 * 5 + 5 * 2) + 3 * 8 * 5 * (batch_size or 10)
    for budget, expected in ((4 * one, [4, 4, 3]), (one, []), (100 * one, [11])):
        drawn.clear()
        monkeypatch.setattr(blocks, "BLOCK_BYTES", budget)
        f = vd.posterior_predictive(function, guide, x, num_samples=12, batch_size=batch_size)["f"]
        assert f.shape == (12, 10, 2) and len(f.unique(dim=0)) == 12
        assert drawn == [(number, size) for number in expected for size in (20, 10)]


def test_eval_keeps_the_uncertainty(program):
    """eval() turns off dropout layers of the net, not the posterior of its weights."""
    _, function, guide, net, x = program
    assert not net.training
    spread = vd.posterior_predictive(function, guide, x, num_samples=200)["f"].std(0)
    assert (spread > 0.1).all()


def test_return_sites(program):
    model, _, guide, _, x = program
    samples = predict(4, model, guide, x, num_samples=3, return_sites=["net.0.weight", "logits"])
    assert {k: tuple(v.shape) for k, v in samples.items()} == {"net.0.weight": (3, 5, 4), "logits": (3, 10, 2)}
    pyro.set_rng_seed(4)
    assert torch.equal(samples["net.0.weight"][0], guide(x)["net.0.weight"])


def test_errors(program):
    model, _, guide, _, x = program
    for options, text in (
        ({"mode": "median"}, "mode: expected one of 'weights', 'local', 'mean', got 'median'"),
        ({"num_samples": 0}, "num_samples: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            vd.posterior_predictive(model, guide, x, **{"num_samples": 2, **options})
    with pytest.raises(ValueError, match="batch_size: expected an array of examples among the arguments, got none"):
        vd.posterior_predictive(lambda: None, lambda: None, num_samples=1, batch_size=2)
    long = vd.posterior_predictive(model, guide, torch.randn(101, 4), num_samples=1, batch_size=40)
    assert long["y"].shape == (1, 101, 2)


def test_a_guide_with_sites_inside_a_plate_cannot_be_cut():
    def model(x):
        with vd.data_plate(20, len(x)):
            pyro.deterministic("f", x + pyro.sample("z", dist.Normal(0.0, 1.0)))

    def guide(x):
        with vd.data_plate(20, len(x)):
            pyro.sample("z", dist.Normal(x, 0.1))

    assert vd.posterior_predictive(model, guide, torch.ones(6), num_samples=2)["f"].shape == (2, 6)
    with pytest.raises(ValueError, match=r"batch_size: expected a guide without sites inside a plate, got \['z'\]"):
        vd.posterior_predictive(model, guide, torch.ones(6), num_samples=2, batch_size=4)
