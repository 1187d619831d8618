"""The padding row of ``F.embedding(x, parameter, padding_idx=...)`` is the constant that a layer's would be."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD

PAD = 0
TOKENS = torch.tensor([[1, 0, 0], [2, 3, 0]])


class Table(nn.Module):
    padding_idx = 0

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.full((4, 3), 0.5))
        self.last = -4

    def forward(self, tokens):
        return F.embedding(tokens, self.table, self.padding_idx)


class ByKeyword(Table):
    def forward(self, tokens):
        return F.embedding(input=tokens, weight=self.table, padding_idx=0)


class FromTheEnd(Table):
    def forward(self, tokens):
        return F.embedding(tokens, self.table, padding_idx=-4)


class ByAttribute(Table):
    def forward(self, tokens):
        pad = self.last
        return torch.nn.functional.embedding(tokens, self.table, padding_idx=pad)


def look_up(tokens, table, pad=None):
    return F.embedding(tokens, table, padding_idx=pad)


class ByHelper(Table):
    def forward(self, tokens):
        return look_up(tokens, self.table, PAD)


class Bags(Table):
    def forward(self, tokens):
        return F.embedding_bag(tokens, self.table, mode="sum", padding_idx=0)


class OfALayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(4, 3)

    def forward(self, tokens):
        return F.embedding(tokens, self.words.weight, padding_idx=0)


NETS = [Table, ByKeyword, FromTheEnd, ByAttribute, ByHelper, Bags, OfALayer]


def program(net, family=AutoMeanField, prior=None):
    bnn = vd.BayesianModule(net, prior or dist.Normal(0.0, 1.0))

    def model(tokens):
        out = pyro.deterministic("out", bnn(tokens))
        with vd.data_plate(2, len(tokens)):
            pyro.sample("y", dist.Normal(out.reshape(2, -1, 3).sum(1), 1.0).to_event(1), obs=torch.ones(2, 3))

    return bnn, model, family(model)


@pytest.mark.parametrize("net", NETS)
def test_the_row_is_a_constant(net):
    pyro.set_rng_seed(0)
    bnn, model, guide = program(net())
    (site,) = map(bnn.site, bnn.weight_names)
    row = bnn.net.get_parameter(bnn.weight_names[0])[0].detach().clone()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO())
    for _ in range(3):
        svi.step(TOKENS)
    q = guide.posteriors()[site]
    assert torch.equal(q.mean[0], row) and not q.variance[0].any() and q.variance[1:].all()
    for estimator in ("local", "shared"):
        kl = vd.TraceVD_ELBO(estimator).terms(model, guide, TOKENS).kl[site]
        free = torch.distributions.kl_divergence(guide.posterior(site), dist.Normal(0.0, 1.0).expand([4, 3]))[1:]
        torch.testing.assert_close(kl, free.sum())
    for mode in ("weights", "local"):
        out = vd.posterior_predictive(
            model, guide, torch.zeros_like(TOKENS), num_samples=2, mode=mode, return_sites=["out"]
        )["out"]
        number = 0.0 if net is Bags else 1.0
        assert torch.equal(out, number * row.expand_as(out)), mode


@pytest.mark.parametrize("family", [AutoSparseVD, AutoNormal])
def test_also_of_other_guides_and_in_a_pruned_net(family):
    prior = vd.ImproperLogUniform() if family is AutoSparseVD else None
    _, model, guide = program(Table(), family, prior)
    guide(TOKENS)
    trace = pyro.poutine.trace(guide).get_trace(TOKENS)
    out = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(TOKENS).nodes["out"]["value"]
    assert (out[TOKENS == 0] == 0.5).all() and not (out[TOKENS != 0] == 0.5).any()
    mask = torch.tensor([[1.0], [0.0], [1.0], [1.0]]).expand(4, 3)
    masked = torch.nn.utils.prune.custom_from_mask(Table(), "table", mask)
    fixed = vd.BayesianModule(masked, dist.Normal(0.0, 1.0)).fixed("table_orig")
    assert fixed.mask.expand(4, 3).all(1).tolist() == [True, True, False, False]
    assert (fixed.imposed_on(torch.ones(4, 3))[:2] == torch.tensor([[0.5], [0.0]])).all()


class UsedByAHead(Table):
    def forward(self, tokens):
        return F.embedding(tokens, self.table, padding_idx=0) @ self.table.T


class Computed(Table):
    def forward(self, tokens):
        return F.embedding(tokens, self.table, padding_idx=len(tokens) - len(tokens))


class Shifted(Table):
    def forward(self, tokens):
        return F.embedding(tokens, self.table[1:], padding_idx=0)


def test_a_row_that_another_use_trains_is_random():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vd.BayesianModule(UsedByAHead(), dist.Normal(0.0, 1.0)).fixed("table") is None


@pytest.mark.parametrize("net", [Computed, Shifted])
def test_a_row_that_cannot_be_read_is_said(net):
    with pytest.warns(UserWarning, match=r"got F.embedding or F.embedding_bag of \['table'\] with a padding_idx that"):
        assert vd.BayesianModule(net(), dist.Normal(0.0, 1.0)).fixed("table") is None
