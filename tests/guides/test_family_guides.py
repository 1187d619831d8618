"""The guides of the noise families: rates that are read, fixed and learned; families mixed by site; whole units."""

from __future__ import annotations

import math
from operator import attrgetter

import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.family_guides import SHAPES, SITES, X, Y, make, steps
from helpers.oracles import quadrature_kl
from pyro_vd import guides

LOGIT = math.log(0.3 / 0.7)
# name, options, log_alpha at the start (None: derived), and its shape as (out, in) of a layer
RATES = [
    ("AutoBernoulliDropout", {"dropout_rate": 0.3}, LOGIT, lambda o, i: (1, 1)),
    ("AutoConcreteDropout", {"init_dropout_rate": 0.3}, LOGIT, lambda o, i: (1, 1)),
    ("AutoGaussianDropout", {"dropout_rate": 0.3}, LOGIT, lambda o, i: (1, 1)),
    ("AutoGaussianDropout", {"dropout_rate": 0.3, "correlated": True}, LOGIT, lambda o, i: (1, 1)),
    ("AutoVariationalDropout", {"correlated": True, "init_log_alpha": -2.0}, -2.0, lambda o, i: (1, i)),
    ("AutoVariationalDropout", {"correlated": True, "init_log_alpha": -2.0, "unit_dim": 0}, -2.0, lambda o, i: (o, 1)),
    ("AutoVariationalDropout", {"correlated": True, "granularity": "layer"}, -3.0, lambda o, i: (1, 1)),
    ("AutoGroupSparse", {"init_log_sigma2": -4.0}, -4.0, lambda o, i: (1, i)),
    ("AutoGroupSparse", {"init_log_sigma2": -4.0, "unit_dim": 0}, -4.0, lambda o, i: (o, 1)),
    ("AutoARD", {"init_log_sigma2": -4.0}, None, lambda o, i: (o, i)),
    ("AutoLowRank", {"init_log_sigma2": -4.0, "rank": 2}, None, lambda o, i: (o, i)),
]
IDS = [f"{name} {options}" for name, options, _, _ in RATES]


@pytest.mark.parametrize(("name", "options", "start", "shape"), RATES, ids=IDS)
def test_rates_are_read_for_each_layer_and_unit(name, options, start, shape):
    model, _, guide = make(name, options)
    guide(X, Y)
    posteriors = guide.posteriors()
    assert tuple(posteriors) == guide.weight_sites == SITES
    for site, layer in SHAPES.items():
        log_alpha, rate = guide.log_alpha(site).detach(), guide.dropout_rate(site).detach()
        assert log_alpha.shape == rate.shape == shape(*layer)
        if start is not None:
            torch.testing.assert_close(log_alpha, torch.full(shape(*layer), start), rtol=0, atol=1e-6)
        else:
            variance = posteriors[site].variance.detach()
            torch.testing.assert_close(log_alpha, (variance / posteriors[site].mean.detach().square()).log())
        torch.testing.assert_close(rate, log_alpha.exp() / (1 + log_alpha.exp()))
    with pytest.raises(ValueError, match=r"one of the weight sites \['net.0.weight', 'net.2.weight'\], got 'w'"):
        guide.log_alpha("w")


TOGGLES = [
    ("AutoGaussianDropout", {}, "log_alphas", False),
    ("AutoGaussianDropout", {"correlated": True}, "log_alphas", False),
    ("AutoVariationalDropout", {"correlated": True}, "log_alphas", True),
    ("AutoVariationalDropout", {"granularity": "layer"}, "log_alphas", True),
    ("AutoConcreteDropout", {}, "logit_dropout_rates", True),
    ("AutoGroupSparse", {}, "unit_log_sigma2s", True),
    ("AutoLowRank", {}, "factors", True),
    ("AutoARD", {}, "log_sigma2s", True),
    ("AutoBernoulliDropout", {}, "locs", True),
]


@pytest.mark.parametrize("optimizer", ["pyro", "torch"])
@pytest.mark.parametrize(("name", "options", "quantity", "learned"), TOGGLES)
def test_fixed_quantities_become_learned_and_back(name, options, quantity, learned, optimizer):
    model, _, guide = make(name, options)
    guide(X, Y)

    def read(site):
        return attrgetter(f"{quantity}.{site}")(guide).detach().clone()

    for toggle, learnable in enumerate((learned, not learned, learned, not learned)):
        if toggle:
            guide.set_learnable(quantity, learnable)
        names = {key for key, _ in guide.named_parameters()}
        assert (f"{quantity}.{SITES[0]}" in names) == learnable
        before = {site: read(site) for site in SITES}
        steps(model, guide, optimizer=optimizer)
        for site in SITES:
            assert torch.equal(read(site), before[site]) != learnable, (site, learnable)


@pytest.mark.parametrize("optimizer", ["pyro", "torch"])
def test_one_site_is_made_learnable_while_the_other_stays(optimizer):
    model, _, guide = make("AutoGaussianDropout")
    guide(X, Y)
    guide.set_learnable("log_alphas", where="net.2.*")
    before = {site: guide.log_alpha(site).detach().clone() for site in SITES}
    steps(model, guide, optimizer=optimizer)
    assert torch.equal(guide.log_alpha(SITES[0]), before[SITES[0]])
    assert not torch.equal(guide.log_alpha(SITES[1]), before[SITES[1]])


def test_a_toggle_keeps_the_value_that_was_learned():
    model, _, guide = make("AutoGaussianDropout")
    guide(X, Y)
    guide.set_learnable("log_alphas")
    steps(model, guide)
    learned = guide.log_alpha(SITES[0]).detach().clone()
    assert f"AutoGaussianDropout.log_alphas.{SITES[0]}" in pyro.get_param_store()
    guide.set_learnable("log_alphas", False)
    assert not any("log_alphas" in name for name in pyro.get_param_store())
    assert torch.equal(guide.log_alpha(SITES[0]), learned) and learned != 0
    steps(model, guide)
    assert torch.equal(guide.log_alpha(SITES[0]), learned)


def test_a_binary_rate_cannot_be_learned_and_what_can():
    _, _, guide = make("AutoBernoulliDropout")
    guide(X, Y)
    with pytest.raises(ValueError, match="'dropout_rates' of AutoBernoulliDropout .*use AutoConcreteDropout"):
        guide.set_learnable("dropout_rates")
    with pytest.raises(ValueError, match=r"expected one of \['dropout_rates', 'locs'\], got 'log_alphas'"):
        guide.set_learnable("log_alphas")


FIXED = [("AutoGaussianDropout", {}), ("AutoGaussianDropout", {"correlated": True}), ("AutoBernoulliDropout", {})]


@pytest.mark.parametrize(("name", "options"), FIXED)
def test_the_kl_of_a_fixed_rate_does_not_depend_on_the_weights(name, options):
    """The gradient of ``loc`` in the KL is none at all, and its value the same bit by bit at other weights."""
    model, _, guide = make(name, options)
    elbo = vd.TraceVD_ELBO()
    first = elbo.terms(model, guide, X, Y)
    parameters = [p for p in guide.parameters() if p.requires_grad]
    assert len(parameters) == 2
    for kl in first.kl.values():
        gradients = torch.autograd.grad(kl, parameters, allow_unused=True) if kl.requires_grad else [None] * 2
        assert all(g is None or not g.any() for g in gradients)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 3)
    second = elbo.terms(model, guide, X, Y)
    assert all(torch.equal(first.kl[site], second.kl[site]) for site in SITES)
    assert not torch.equal(first.data, second.data)


@pytest.mark.parametrize(("correlated", "terms"), [(False, (12, 6)), (True, (4, 3))])
def test_one_kl_for_each_noise_variable_of_a_rate_shared_by_a_layer(correlated, terms):
    options = {"correlated": correlated, "granularity": "layer", "init_log_alpha": -1.5, "kl": "exact"}
    model, _, guide = make("AutoVariationalDropout", options)
    kl = vd.TraceVD_ELBO().terms(model, guide, X, Y).kl
    for site, number in zip(SITES, terms, strict=True):
        assert float(kl[site].detach()) == pytest.approx(number * quadrature_kl(-1.5), rel=1e-5)


def test_families_are_mixed_by_site_and_trained_together():
    """Type B on the first layer, sparse VD above."""
    model, _, _ = make("AutoSparseVD")
    guide = guides.mixed_guide(
        model,
        guides.AutoVariationalDropout(model, correlated=True, where="net.0.*"),
        guides.AutoSparseVD(model, where=lambda site: site == "net.2.weight"),
    )
    guide(X, Y)
    posteriors = vd.weight_posteriors(guide, X, Y)
    kinds = {site: type(posterior) for site, posterior in posteriors.items()}
    assert kinds == {"net.0.weight": vd.CorrelatedDropoutNormal, "net.2.weight": vd.DropoutNormal}
    assert [part.weight_sites for part in guide] == [SITES[:1], SITES[1:]]
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    assert {name.partition(".")[2].partition(".")[0] for name in before} == {"locs", "log_alphas", "log_sigma2s"}
    first = vd.TraceVD_ELBO(num_particles=20).loss(model, guide, X, Y)
    steps(model, guide, number=60)
    assert vd.TraceVD_ELBO(num_particles=20).loss(model, guide, X, Y) < first
    assert all(not torch.equal(value, before[name]) for name, value in guide.named_parameters())
    report = vd.sparsity_report(vd.weight_posteriors(guide, X, Y), log_alpha_threshold=-2.0)
    for row, part in zip(report.rows, guide, strict=True):
        log_alpha = part.log_alpha(row.site).detach().expand(SHAPES[row.site])
        assert row.kept == int((log_alpha <= -2.0).sum()) and row.shape == SHAPES[row.site]
    drawn = vd.posterior_predictive(model, guide, X, num_samples=3)["y"]
    assert drawn.shape == (3, 12, 2)


def conv_net():
    return nn.Sequential(nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize("unit_dim", [0, 1])
def test_group_sparsity_prunes_whole_units(unit_dim):
    """Input units are columns of a matrix, output units its rows, or the filters of a convolution."""
    model, bnn, guide = make("AutoGroupSparse", {"unit_dim": unit_dim}, conv_net())
    x = X[:, None]
    guide(x, Y)
    dropped = {"net.0.weight": [0] if unit_dim else [1, 3], "net.3.weight": [2, 5, 11] if unit_dim else [1]}
    dropped = {site: units for site, units in dropped.items() if not (unit_dim and site == "net.0.weight")}
    with torch.no_grad():
        for site, units in dropped.items():
            attrgetter(f"unit_log_sigma2s.{site}")(guide)[units] = 4.0
            attrgetter(f"unit_locs.{site}")(guide).mul_(1.1)
    pruned = dict(vd.prune(bnn, guide).named_parameters())
    report = vd.sparsity_report(guide).to_dict()
    for site, posterior in guide.posteriors().items():
        weight = pruned[site.removeprefix("net.")].detach()
        kept = [unit for unit in range(weight.shape[unit_dim]) if unit not in dropped.get(site, [])]
        expected = torch.zeros_like(weight)
        index = (slice(None), kept) if unit_dim else (kept,)
        expected[index] = posterior.mean.detach()[index]
        assert torch.equal(weight, expected) and (expected[index] != 0).all()
        assert report[site]["kept"] == expected.count_nonzero()
