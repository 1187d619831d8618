"""Draws side by side, for every kind of net: the same as one by one, within a bound of memory, buffers as before."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.predictive import classifier, small_net
from pyro_vd.guides import AutoMeanField
from pyro_vd.predict import blocks, likelihoods


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("net", ["plain", "batch norm", "looks at values"])
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("mode", ["weights", "local", "mean"])
def test_programs_that_vmap_cannot_run_take_the_loop(net, mode, batch_size):
    class Looks(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 1e9 else x

    odd = {"plain": nn.Identity(), "batch norm": nn.BatchNorm1d(5), "looks at values": Looks()}[net]
    model, guide = classifier(nn.Sequential(nn.Linear(4, 5), odd, nn.Linear(5, 3)).train())
    x = torch.randn(8, 4)
    y = vd.predictive_distribution(model, guide, x, num_samples=4, mode=mode, batch_size=batch_size)["y"]
    assert y.probs.shape == (8, 3)
    assert len(y.draws.logits.unique(dim=0)) == y.num_samples


def test_blocks_fit_a_bound(monkeypatch):
    """As many draws at a time as the bound allows, of weights and three times the largest activation."""
    sizes = []
    original = likelihoods.DrawsOfLikelihoods._block

    def spy(self, number):
        sizes.append(number)
        block = original(self, number)
        assert block is not None, "the draws ran side by side"
        return block

    monkeypatch.setattr(likelihoods.DrawsOfLikelihoods, "_block", spy)
    model, guide = classifier(small_net())
    x = torch.randn(10, 4)
    one = 8 * (4 * 5 + 5 * 3) + 3 * 8 * 50  # its weights; ten examples of five hidden units
    for budget, expected in ((4 * one, [4, 4, 1]), (one, []), (100 * one, [9])):
        sizes.clear()
        monkeypatch.setattr(blocks, "BLOCK_BYTES", budget)
        assert vd.predictive_distribution(model, guide, x, num_samples=10)["y"].num_samples == 10
        assert sizes == expected


NETS = {
    "linear": (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(6, 4)),
    "convolution": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)), torch.randn(6, 1, 8, 8),
    ),
    "embedding": (
        nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)), torch.randint(7, (6, 2)),
    ),
    "layer norm, dropout": (
        nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Dropout(), nn.Linear(5, 3)).eval(), torch.randn(6, 4),
    ),
    "batch norm": (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval(), torch.randn(6, 4),
    ),
    "attention": (
        nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(8, 3)).eval(),
        torch.randn(6, 2, 4),
    ),
    "recurrent": (None, torch.randn(6, 3, 4)),
}  # fmt: skip


class LastOfGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.last = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_draws_side_by_side_are_draws_one_by_one(name, batch_size, monkeypatch):
    """For every kind of layer: each draw is the net at that draw's weights, whichever way it was run."""
    torch.set_default_dtype(torch.float32)
    net, x = NETS[name]
    net = LastOfGRU() if net is None else net
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(x):
        pyro.sample("y", dist.Normal(bnn(x), 1.0).to_event(1))

    guide = AutoMeanField(bnn, init_log_sigma2=-2.0)
    guide(x)
    seen, original = [], likelihoods.DrawsOfLikelihoods._values_of_block
    monkeypatch.setattr(
        likelihoods.DrawsOfLikelihoods,
        "_values_of_block",
        lambda self, index: seen.append(original(self, index)) or seen[-1],
    )
    y = vd.predictive_distribution(model, guide, x, num_samples=4, batch_size=batch_size)["y"]
    loc = y.draws.base_dist.loc
    assert loc.shape == (4, 6, 3)
    (values,) = seen
    for draw in range(3):
        weights = {site: value[draw] for site, value in values.items()}
        by_hand = pyro.poutine.trace(pyro.poutine.condition(model, weights)).get_trace(x).nodes["y"]["fn"].base_dist.loc
        if name != "recurrent":  # vmap has no rule for it: the loop draws weights of its own
            torch.testing.assert_close(loc[1 + draw], by_hand, rtol=1e-4, atol=1e-5)
    if name == "embedding":
        pad = torch.zeros(2, 2, dtype=torch.long)
        y = vd.predictive_distribution(model, guide, pad, num_samples=4)["y"]
        last = {site: value for site, value in seen[-1].items() if site.startswith("net.2")}
        expected = net[0].weight[0].repeat(2) @ last["net.2.weight"][0].T + net[2].bias
        torch.testing.assert_close(y.draws.base_dist.loc[1, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["weights", "local", "mean"])
def test_buffers_are_as_before(mode):
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).train()
    model, guide = classifier(net)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    vd.predictive_distribution(model, guide, 5 + torch.randn(8, 4), num_samples=3, mode=mode)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
