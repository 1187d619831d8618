"""Whoever reads the posterior of a weight is told the same of the elements that a layer keeps fixed. Exact."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import pyro_vd as vd
from pyro_vd.guides import (
    AutoARD,
    AutoBernoulliDropout,
    AutoConcreteDropout,
    AutoGaussianDropout,
    AutoGroupSparse,
    AutoLowRank,
    AutoMeanField,
    AutoSparseVD,
    AutoVariationalDropout,
)
from pyro_vd.sparsity import keep_mask

FAMILIES = {
    "mean field": AutoMeanField,
    "sparse": AutoSparseVD,
    "zeroed": lambda m: AutoSparseVD(m, init_log_sigma2=0.0, zero_above=0.0),
    "ard": AutoARD,
    "weight": AutoVariationalDropout,
    "unit": lambda m: AutoVariationalDropout(m, granularity="unit"),
    "layer": lambda m: AutoVariationalDropout(m, granularity="layer"),
    "correlated": lambda m: AutoVariationalDropout(m, correlated=True),
    "gaussian": AutoGaussianDropout,
    "gaussian correlated": lambda m: AutoGaussianDropout(m, correlated=True),
    "bernoulli": AutoBernoulliDropout,
    "concrete": AutoConcreteDropout,
    "group": AutoGroupSparse,
    "group rows": lambda m: AutoGroupSparse(m, unit_dim=0),
    "low rank": lambda m: AutoLowRank(m, 2),
}


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return F.embedding(x, self.table, padding_idx=0)


def embedding(row=1.0):
    net = nn.Embedding(4, 3, padding_idx=0)
    with torch.no_grad():
        net.weight[0] = row
    return net


def masked():
    net = nn.Linear(3, 4)
    prune.custom_from_mask(net, "weight", torch.tensor([[0], [1], [1], [1]]).expand(4, 3))
    return net


NETS = {
    "row": (embedding, "net.weight"),
    "zero row": (lambda: embedding(0.0), "net.weight"),
    "row by code": (Rows, "net.table"),
    "masked": (masked, "net.weight_orig"),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_readers_agree(family, net):
    torch.manual_seed(0)
    make, site = NETS[net]
    bnn = vd.BayesianModule(make(), dist.Normal(0.0, 1.0))
    guide = FAMILIES[family](bnn)
    fixed = bnn.fixed(site.removeprefix("net."))
    constants = torch.broadcast_to(torch.as_tensor(fixed.value), (4, 3))[0]
    q, of_all = guide.posterior(site), guide.posteriors()[site]
    x = torch.zeros(1, 3, dtype=torch.float32 if net == "masked" else torch.long)
    run = vd.weight_posteriors(guide, x)[site]
    for own in (q, of_all, run):
        assert torch.equal(own.mean[0], constants) and not own.variance[0].any() and not own.scale[0].any()
        assert torch.equal(own.rsample()[0], constants) and own.variance[1:].min() >= 0
        for name in ("mean", "variance", "log_alpha", "dropout_rate"):
            assert torch.equal(getattr(own, name), getattr(q, name)), name
    whole = q.log_alpha.expand(4, 3)
    assert torch.equal(guide.log_alpha(site).expand(4, 3), whole)
    assert torch.equal(whole[0], torch.where(constants == 0, math.inf, -math.inf))
    torch.testing.assert_close(guide.dropout_rate(site).expand(4, 3), q.dropout_rate.expand(4, 3))
    assert torch.equal(guide.median(x)[site], q.mean)

    kept = constants != 0
    masks = vd.keep_masks(guide)[site]
    assert torch.equal(masks[0], kept) and torch.equal(keep_mask(q), masks)
    by_site = {site: q}
    assert torch.equal(vd.keep_masks(by_site)[site], masks)
    assert vd.sparsity_report(by_site) == vd.sparsity_report(guide)
    assert vd.weight_bits(by_site).rows == vd.weight_bits(guide).rows


def test_a_guide_by_hand_has_its_posterior_with_the_constants():
    class OfUser(AutoMeanField):
        def posterior(self, site):
            return self._free_posterior(site)

    guide = OfUser(vd.BayesianModule(embedding(), dist.Normal(0.0, 1.0)))
    assert not guide.posteriors()["net.weight"].variance[0].any()


def test_log_sigma2_of_constants():
    guide = AutoMeanField(vd.BayesianModule(embedding(), dist.Normal(0.0, 1.0)), init_log_sigma2=-2.0)
    assert guide.posterior("net.weight").log_sigma2[:, 0].tolist() == [-math.inf, -2.0, -2.0, -2.0]


def test_a_site_that_is_no_weight():
    def model():
        pyro.sample("scale", dist.Normal(0.0, 1.0))
        bnn(torch.zeros(1, dtype=torch.long))

    bnn = vd.BayesianModule(embedding(), dist.Normal(0.0, 1.0))
    guide = AutoMeanField(model)
    guide()
    for site in ("scale", "net.other"):
        for read in (guide.posterior, guide.log_alpha, guide.dropout_rate):
            with pytest.raises(ValueError, match="expected one of the weight sites"):
                read(site)
