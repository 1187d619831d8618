"""Which weights are kept: the report against a count by hand, its table, and the pruned net."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD, AutoVariationalDropout
from pyro_vd.sparsity import keep_mask

# log_alpha = log_sigma2 - 2 * log |loc| is written into loc, with log_sigma2 = 0: loc = exp(-log_alpha / 2)
FIRST = torch.tensor([[-6.0, 2.9, 3.1, 8.0], [0.0, 3.5, 2.0, 12.0], [4.0, 5.0, 6.0, 7.0]])  # 4 of 12 are <= 3
SECOND = torch.tensor([[9.0, 1.0, 2.5]])  # 2 of 3 are <= 3


def make_program():
    """A net whose guide has the log_alpha above, trained bias, BatchNorm buffers; weights of the net as they were."""
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
    guide = AutoSparseVD(bnn, init_log_sigma2=0.0)
    guide(torch.randn(5, 4))
    with torch.no_grad():
        for loc, log_alpha in zip(guide.locs.parameters(), (FIRST, SECOND), strict=True):
            loc.copy_((-0.5 * log_alpha).exp() * torch.tensor([-1.0, 1.0]).repeat(2)[: loc.shape[1]])
        net[0].bias.fill_(0.75)
    net[1].running_mean.fill_(0.5)
    return net, bnn, guide


def test_report_against_a_count_by_hand():
    _, _, guide = make_program()
    report = vd.sparsity_report(guide)
    first, second = report.rows
    assert (first.site, first.shape, first.weights, first.kept) == ("net.0.weight", (3, 4), 12, 4)
    assert (second.site, second.shape, second.weights, second.kept) == ("net.3.weight", (1, 3), 3, 2)
    assert (first.sparsity, first.compression) == (pytest.approx(8 / 12), pytest.approx(3.0))
    assert (report.total.weights, report.total.kept) == (15, 6)
    assert (report.sparsity, report.compression) == (pytest.approx(9 / 15), pytest.approx(2.5))
    assert report.log_alpha_threshold == 3.0


def test_table_and_dict():
    _, _, guide = make_program()
    report = vd.sparsity_report(guide)
    assert str(report) == "\n".join([
        "site                   shape    weights       kept  sparsity  compression",
        "net.0.weight             3x4         12          4    66.67%         3.0x",
        "net.3.weight             1x3          3          2    33.33%         1.5x",
        "total                                15          6    60.00%         2.5x",
    ])  # fmt: skip
    assert report.to_dict() == {
        "net.0.weight": {"shape": (3, 4), "weights": 12, "kept": 4, "sparsity": 1 - 4 / 12, "compression": 3.0},
        "net.3.weight": {"shape": (1, 3), "weights": 3, "kept": 2, "sparsity": 1 - 2 / 3, "compression": 1.5},
        "total": {"shape": (), "weights": 15, "kept": 6, "sparsity": 1 - 6 / 15, "compression": 2.5},
    }
    assert list(report.to_dict()) == ["net.0.weight", "net.3.weight", "total"]


@pytest.mark.parametrize("threshold, kept", [
    (math.inf, 15), (-math.inf, 0), (3.0, 6), (3.2, 7), (0.0, 2), (-5.9, 1), (-6.1, 0), (11.9, 14),
])  # fmt: skip
def test_thresholds(threshold, kept):
    _, bnn, guide = make_program()
    report = vd.sparsity_report(guide, threshold)
    assert report.total.kept == kept
    assert report.compression == (15 / kept if kept else math.inf)
    pruned = vd.prune(bnn, guide, threshold)
    assert int(pruned[0].weight.count_nonzero() + pruned[3].weight.count_nonzero()) == kept
    assert ("infx" in str(report)) == (kept == 0 or report.rows[1].kept == 0 or report.rows[0].kept == 0)


@pytest.mark.parametrize("correlated, kept", [(False, [0, 8, 0]), (True, [4, 4, 4])])
def test_a_shared_log_alpha_counts_every_weight(correlated, kept):
    """One log_alpha for an output channel of 8 weights, or an input channel of 4 weights in each of 3 outputs."""
    bnn = vd.BayesianModule(nn.Conv2d(2, 3, 2), vd.ImproperLogUniform())
    guide = AutoVariationalDropout(bnn, "unit", correlated=correlated)
    guide(torch.randn(1, 2, 3, 3))
    with torch.no_grad():
        next(guide.log_alphas.parameters()).select(1 if correlated else 0, 1).fill_(-7.0)
    report = vd.sparsity_report(guide, -5.0)
    assert (report.rows[0].shape, report.total.weights, report.total.kept) == ((3, 2, 2, 2), 24, sum(kept))
    assert keep_mask(guide.posterior("net.weight"), -5.0).flatten(1).sum(1).tolist() == kept


def test_prune_gives_means_and_exact_zeros_and_leaves_the_net():
    net, bnn, guide = make_program()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruned = vd.prune(bnn, guide)
    for layer, site, log_alpha in ((0, "net.0.weight", FIRST), (3, "net.3.weight", SECOND)):
        expected = torch.where(log_alpha <= 3, guide.posterior(site).loc, 0.0)
        assert torch.equal(pruned[layer].weight, expected)
        assert isinstance(pruned[layer].weight, nn.Parameter)
    assert [type(layer) for layer in pruned] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    for name in ("0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked", "3.bias"):
        assert torch.equal(pruned.state_dict()[name], before[name]), name
    assert (pruned[0].bias == 0.75).all() and (pruned[1].running_mean == 0.5).all()
    with torch.no_grad():
        for value in pruned.state_dict().values():
            value.fill_(9)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not pyro.poutine.trace(pruned).get_trace(torch.randn(2, 4)).stochastic_nodes


def test_tied_parameters_are_one_weight_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.decoder.weight = self.encoder.weight

        def forward(self, x):
            return self.decoder(torch.relu(self.encoder(x)))

    bnn = vd.BayesianModule(Tied(), vd.ImproperLogUniform())
    guide = AutoSparseVD(bnn, init_log_sigma2=0.0)
    guide(torch.randn(2, 3))
    with torch.no_grad():
        next(guide.locs.parameters()).copy_(torch.eye(3) + 0.01)
    assert vd.sparsity_report(guide).to_dict()["total"]["weights"] == 9
    pruned = vd.prune(bnn, guide)
    assert pruned.decoder.weight is pruned.encoder.weight
    assert torch.equal(pruned.encoder.weight, 1.01 * torch.eye(3))


def test_error_of_the_pruned_net_at_several_thresholds():
    """What is reported after pruning is the error of what ``prune`` returns, here against a forward pass by hand."""
    net, bnn, guide = make_program()
    net.eval()
    x = torch.randn(40, 4)
    y = torch.randn(40, 1)
    first, second = (guide.posterior(site).loc.detach() for site in guide.weight_sites)
    errors = []
    for threshold in (-math.inf, 1.5, 2.2, 3.0, 8.5, math.inf):
        hidden = x @ (first * (FIRST <= threshold)).T + 0.75
        hidden = torch.relu((hidden - 0.5) / (net[1].running_var + net[1].eps).sqrt())
        output = hidden @ (second * (SECOND <= threshold)).T + net[3].bias
        with torch.no_grad():
            pruned = vd.prune(bnn, guide, threshold).eval()(x)
        torch.testing.assert_close(pruned, output.detach(), rtol=1e-5, atol=1e-5)
        errors.append((pruned - y).square().mean().item())
    assert len(set(errors)) == 6, "each threshold is another net"
    mean = vd.posterior_predictive(lambda x: pyro.deterministic("f", bnn(x)), guide, x, num_samples=1, mode="mean")
    with torch.no_grad():
        torch.testing.assert_close(vd.prune(bnn, guide, math.inf).eval()(x), mean["f"][0])


def test_guides_written_by_hand():
    _, bnn, auto = make_program()
    posteriors = auto.posteriors()

    def guide(x, scale=1.0):
        pyro.sample("noise", dist.Gamma(2.0, 2.0))
        for site, posterior in posteriors.items():
            loc = pyro.param(f"loc.{site}", posterior.loc.detach() * scale)
            pyro.sample(site, vd.DropoutNormal(loc, log_sigma2=0.0).to_event(2))

    found = vd.weight_posteriors(guide, torch.ones(1, 4), scale=1.0)
    assert list(found) == ["net.0.weight", "net.3.weight"]
    assert all(type(posterior) is vd.DropoutNormal for posterior in found.values())
    assert str(vd.sparsity_report(found)) == str(vd.sparsity_report(auto))
    ours, theirs = vd.prune(bnn, found), vd.prune(bnn, auto)
    assert torch.equal(ours[0].weight, theirs[0].weight) and torch.equal(ours[3].weight, theirs[3].weight)
    with pyro.poutine.trace() as outer:
        vd.weight_posteriors(guide, torch.ones(1, 4))
        vd.sparsity_report(auto)
    assert not outer.trace.nodes, "reading a guide leaves no sites in a trace around it"


def test_errors():
    _, bnn, guide = make_program()
    with pytest.raises(TypeError, match=r"got function; write weight_posteriors\(guide, \*args\) for a guide"):
        vd.sparsity_report(lambda x: None)
    partial = {"net.0.weight": guide.posterior("net.0.weight")}
    with pytest.raises(ValueError, match="prune: expected a guide with a weight at site 'net.3.weight', got one"):
        vd.prune(bnn, partial)
    with pytest.raises(ValueError, match="expected a guide that has seen its model once"):
        vd.sparsity_report(AutoSparseVD(lambda: pyro.sample("w", vd.ImproperLogUniform().expand([3]))))
