"""Draws by the operations of one of them: the net at the weights of each draw, where it is a function of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoLowRank, AutoMeanField
from pyro_vd.predict import blocks, posteriors
from pyro_vd.predict.tape import Tape

NUMBER = 24
CONSTANT = torch.arange(12.0).reshape(3, 4)


def residual(w):
    h = w @ CONSTANT
    return [h.relu() + h, h.tanh()]


def view_of_what_is_changed(w):
    h = w @ CONSTANT
    return [h.view(-1).relu(), h.sigmoid().relu()]


def written_in_place(w):
    out = torch.zeros(2, 3)
    out[0] = w[0]
    out[1].add_(w[1]).relu_()
    return [out, out.T]


def several_results(w):
    largest, where = w.max(1)
    first, second = w.relu().split(1)
    return [torch.cat([first.relu(), second, w]), largest, where]


def noise(w):
    torch.rand(2)  # of no use, but drawn
    return [w + torch.randn(2, 3), torch.bernoulli(w.sigmoid()), torch.multinomial(w.exp(), 2)]


def what_it_was_given(w):
    return [w, w.T, CONSTANT]


@pytest.mark.parametrize(
    "function",
    [residual, view_of_what_is_changed, written_in_place, several_results, noise, what_it_was_given],
    ids=lambda function: function.__name__,
)
def test_a_tape_is_the_function(function):
    """Exactly, at other inputs, and again: no run sees what another wrote."""
    with torch.no_grad():
        recorded = torch.randn(2, 3)
        with Tape([recorded]) as tape:
            found = function(recorded)
        tape.finish(found)
        before = CONSTANT.clone()
        for seed in range(3):
            w = torch.randn(2, 3)
            torch.manual_seed(seed)
            expected = function(w.clone())
            torch.manual_seed(seed)
            for ours, theirs in zip(tape.run([w.clone()]), expected, strict=True):
                assert torch.equal(ours, theirs)
        assert torch.equal(CONSTANT, before)


def test_a_tape_needs_no_compiler():
    """Private: torch/utils/_python_dispatch.py, TorchDispatchMode._should_skip_dynamo."""
    assert not hasattr(Tape.__torch_dispatch__, "__wrapped__")


class Net(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 5), between, nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


class SameNoise(nn.Module):
    def forward(self, x):
        torch.manual_seed(0)
        return x + torch.randn_like(x)


class RareNoise(nn.Module):
    """Of a seed of its own, with no effect in almost all draws."""

    def forward(self, x):
        torch.manual_seed(0)
        return x * torch.bernoulli(torch.full_like(x, 1 - 1e-6))


class Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return x * nn.Parameter(self.weight)


def program(between=None, family=AutoMeanField):
    torch.manual_seed(0)
    bnn = vd.BayesianModule(Net(between or nn.ReLU()), dist.Normal(0.0, 1.0), where=lambda name, _: "bias" not in name)

    def model(x):
        f = pyro.deterministic("f", bnn(x))
        pyro.sample("y", dist.Normal(f, 1e-3).to_event(1))

    guide = family(bnn)
    guide(torch.randn(6, 4))
    return model, guide, bnn.net


@pytest.fixture
def runs(monkeypatch):
    """How many draws a tape has made; few draws fit a block."""
    made, original = [], Tape.run
    monkeypatch.setattr(Tape, "run", lambda self, inputs: made.append(len(inputs)) or original(self, inputs))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * (4 * 5 + 5 * 3) * 4 + 4 * 3 * 4 * 30)
    return made


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Softmax(-1)], ids=str)
@pytest.mark.parametrize("family", [AutoMeanField, AutoLowRank])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_each_draw_is_the_net_at_its_weights(between, family, batch_size, runs):
    """The weights too are those of the draw, whatever memory the next one takes; one function over all pieces."""
    model, guide, net = program(between, family)
    x = torch.randn(6, 4)
    sites = ["net.first.weight", "net.last.weight", "f", "y"]
    found = vd.posterior_predictive(model, guide, x, num_samples=NUMBER, batch_size=batch_size, return_sites=sites)
    assert len(runs) == NUMBER - 4  # but for the first, two side by side and the one recorded
    weights = [found[site] for site in sites[:2]]
    assert all(len(weight.unique(dim=0)) == NUMBER for weight in weights)
    for first, last, f in zip(*weights, found["f"], strict=True):
        values = {"first.weight": first, "last.weight": last}
        torch.testing.assert_close(f, torch.func.functional_call(net, values, x))
    residuals = (found["y"] - found["f"]) / 1e-3
    assert len(residuals.unique()) == residuals.numel() and residuals.abs().max() < 6  # of 432; odds 1e-6


def test_likelihoods_by_a_tape_have_the_moments_of_those_side_by_side(runs, monkeypatch):
    """Mean and standard deviation over 400 draws within 5 standard errors; odds of a failure below 1e-4."""
    model, guide, _ = program()
    x = torch.randn(6, 4)

    def draws(mode="weights"):
        y = vd.predictive_distribution(model, guide, x, num_samples=400, mode=mode)["y"]
        return y.draws.base_dist.loc

    by_tape = draws()
    assert len(runs) == 400 - 4 and len(by_tape.unique(dim=0)) == 400
    monkeypatch.setattr(blocks, "_SMALL_BLOCK", 0)
    side_by_side = draws()
    monkeypatch.setattr(blocks, "_SMALL_BLOCK", 32)
    draws("local")  # whose draws share what is computed of the posteriors
    assert len(runs) == 400 - 4
    error = (2 / 400) ** 0.5 * side_by_side.std(0)
    assert ((by_tape.mean(0) - side_by_side.mean(0)).abs() < 5 * error).all()
    assert ((by_tape.std(0) / side_by_side.std(0)).log().abs() < 0.25).all()  # 5 standard errors


@pytest.mark.parametrize(
    "between, made", [(Counts(), 0), (SameNoise(), 1), (RareNoise(), 1), (Renamed(), 0)], ids=lambda one: str(one)
)
def test_what_is_more_than_its_operations_has_no_tape(between, made, runs):
    """A net that writes to its buffers, sets a seed, or gives a weight another name; each draw is right even so."""
    model, guide, net = program(between)
    x = torch.randn(6, 4)
    sites = list(guide.posteriors())
    found = vd.posterior_predictive(model, guide, x, num_samples=NUMBER, return_sites=[*sites, "f"])
    assert len(runs) == made
    for draw in range(NUMBER):
        values = {site.removeprefix("net."): found[site][draw] for site in sites}
        if made == 0:  # side by side a seed is that of other noise
            torch.testing.assert_close(found["f"][draw], torch.func.functional_call(net, values, x))


@pytest.mark.parametrize("size", [2, 120])
def test_a_seed_gives_the_same_weights_one_by_one_and_together(size, monkeypatch):
    weight = posteriors.WeightDraws(vd.DropoutNormal(torch.randn(size, size), log_sigma2=-1.0))
    found = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        pyro.set_rng_seed(5)
        found.append(torch.stack([draw.clone() for draw in weight.one_by_one(7, 3)]))
        pyro.set_rng_seed(5)
        found.append(weight.draw(7))
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert len(found[0].flatten(1).unique(dim=0)) == 7
