"""A guide that has seen no data yet: trained, loaded, moved, copied, pickled."""

from __future__ import annotations

import copy
import io
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from helpers.guide_cases import FAMILIES, SITES, X, Y, fresh_guide, make_model, seeded, two_parts
from pyro_vd.guides import AutoSparseVD

ELBO = vd.TraceVD_ELBO(analytic_only=False)


@pytest.mark.parametrize("mixed", [False, True])
def test_an_optimizer_made_before_the_first_call_trains_every_weight(mixed):
    model, net = make_model(vd.ImproperLogUniform())
    guide = two_parts(model) if mixed else AutoSparseVD(model)
    loss = vd.TraceVD_ELBO()(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    start = {key: parameter.detach().clone() for key, parameter in loss.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        loss(X, Y).backward()
        optimizer.step()
    assert len(start) == 6
    assert all(not torch.equal(start[key], parameter) for key, parameter in loss.named_parameters())


def trained(name, options, noise_site):
    model, net, guide = fresh_guide(name, options, noise_site)
    guide(X, Y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.sub_(0.3)
    return net, guide


@pytest.mark.parametrize("noise_site", [None, "before", "after"])
@pytest.mark.parametrize("name, options", FAMILIES)
def test_a_state_dict_is_loaded_into_fresh_objects_without_labels(name, options, noise_site):
    _, guide = trained(name, options, noise_site)
    expected = seeded(4, guide, X)
    state = copy.deepcopy(guide.state_dict())
    model, _, fresh = fresh_guide(name, options, noise_site)
    fresh.load_state_dict(state)
    optimizer = {id(parameter) for parameter in fresh.parameters()}
    posteriors = fresh.posteriors()
    assert all(torch.equal(posteriors[site].mean, q.mean) for site, q in guide.posteriors().items())
    assert seeded(4, fresh, X).keys() == expected.keys()  # the first call sees the model, with its random numbers
    draws = seeded(4, fresh, X)
    assert all(torch.equal(draws[site], value) for site, value in expected.items())
    vd.TraceVD_ELBO(analytic_only=False).loss(model, fresh, X, Y)
    assert {id(parameter) for parameter in fresh.parameters()} == optimizer
    assert list(fresh.state_dict()) == list(state)


def test_a_state_dict_with_weights_of_a_hand_written_model_and_a_hierarchy_is_loaded():
    def model(x, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        weight = pyro.sample("w", vd.ImproperLogUniform().expand([4, 3]).to_event(2))
        with vd.data_plate(50, len(x)):
            return pyro.sample("y", dist.Normal(x @ weight + theta, 1.0).to_event(1), obs=y)

    y = torch.zeros(6, 3)
    guide = AutoSparseVD(model)
    guide(X, y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    fresh = AutoSparseVD(model)
    fresh.load_state_dict(guide.state_dict())
    assert fresh.weight_sites == ("w",) and torch.equal(fresh.posterior("w").mean, guide.posterior("w").mean)
    fresh(X)
    assert list(fresh(X)) == ["mu", "theta", "w"]
    assert all(
        torch.equal(a, b) for a, b in zip(seeded(1, fresh, X).values(), seeded(1, guide, X).values(), strict=True)
    )


BAD_STATES = {
    "another site": (lambda s: {k.replace("net.0", "net.1"): v for k, v in s.items()}, "Missing key"),
    "one more": (lambda s: {**s, "locs.other": torch.ones(2)}, "Unexpected key"),
    "one more part": (lambda s: {**s, "other_1.locs.tau_unconstrained": torch.ones(2)}, "Unexpected key"),
    "one less": (lambda s: dict(list(s.items())[1:]), "Missing key"),
    "another shape": (lambda s: {k: v[:1] for k, v in s.items() if v.dim()}, "size mismatch"),
}


@pytest.mark.parametrize("bad", BAD_STATES)
def test_a_state_dict_that_does_not_fit_leaves_the_guide_as_it_was(bad):
    _, guide = trained("AutoSparseVD", {}, "before")
    change, message = BAD_STATES[bad]
    model, _, fresh = fresh_guide("AutoSparseVD", {}, "before")
    keys, shown = list(fresh.state_dict()), repr(fresh)
    with pytest.raises(RuntimeError, match=message):
        fresh.load_state_dict(change(copy.deepcopy(guide.state_dict())))
    assert list(fresh.state_dict()) == keys and repr(fresh) == shown
    assert list(fresh(X, Y)) == ["noise", *SITES]


def test_a_loaded_site_that_the_model_does_not_have_is_an_error():
    _, guide = trained("AutoSparseVD", {}, "before")
    _, _, fresh = fresh_guide("AutoSparseVD", {}, None)
    fresh.load_state_dict(guide.state_dict())
    with pytest.raises(ValueError, match=r"the state dict that was loaded, got one that does not sample \['noise'\]"):
        fresh(X, Y)


@pytest.mark.parametrize("name, options", FAMILIES)
def test_a_guide_and_its_net_are_moved_before_the_first_call(name, options):
    for moved in ("guide and net", "net"):
        model, net, guide = fresh_guide(name, options)
        parameters = list(guide.parameters())
        net.double()
        if moved == "guide and net":
            guide.double()
        pyro.clear_param_store()
        draws = guide(X.double(), Y.double())
        assert all(value.dtype == torch.float64 for value in draws.values())
        assert all(a is b for a, b in zip(parameters, guide.parameters(), strict=True))
        vd.TraceVD_ELBO().loss(model, guide, X.double(), Y.double())


def test_a_net_loaded_after_the_guide_was_made_is_where_the_guide_starts():
    model, net, guide = fresh_guide("AutoSparseVD", {})
    other = fresh_guide("AutoSparseVD", {})[1]
    net.load_state_dict(other.state_dict())
    guide(X, Y)
    assert all(torch.equal(q.mean, other.get_parameter(s.removeprefix("net."))) for s, q in guide.posteriors().items())
    loc = guide.posterior(SITES[0]).mean.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    guide(X, Y)
    assert torch.equal(guide.posterior(SITES[0]).mean, loc), "once it has run, a guide goes its own way"


def test_a_guide_that_was_loaded_or_stepped_does_not_follow_its_net():
    model, net, guide = fresh_guide("AutoSparseVD", {})
    with torch.no_grad():
        guide.locs.get_parameter(SITES[0]).fill_(2.0)
        net[0].weight.fill_(5.0)
        net[2].weight.fill_(5.0)
    guide(X, Y)
    assert guide.posterior(SITES[0]).mean.eq(2).all() and guide.posterior(SITES[1]).mean.eq(5).all()


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_copy_and_its_original_work(mixed, called):
    model, net = make_model(vd.ImproperLogUniform(), None if mixed else "after")
    guide = two_parts(model) if mixed else AutoSparseVD(model)
    if called:
        guide(X)  # without labels: not all is seen
    twin = copy.deepcopy(guide)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    expected = {site: q.mean.detach().clone() for site, q in guide.posteriors().items()}
    for one in (twin, guide, twin):
        assert set(one(X, Y)) == {*SITES, *(() if mixed else ("noise",))}
        ELBO.loss(model, one, X, Y)
    assert all(torch.equal(q.mean, expected[site]) for site, q in guide.posteriors().items())
    torch.testing.assert_close({s: q.mean + 1 for s, q in twin.posteriors().items()}, expected)


def test_a_pickled_guide_says_what_it_lacks():
    _, _, guide = fresh_guide("AutoSparseVD", {}, "after")
    with pytest.raises(
        ValueError, match=r"got one that was pickled before .*; make AutoSparseVD\(model\) and load its"
    ):
        pickle.loads(pickle.dumps(guide))(X, Y)
    guide(X, Y)
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert all(
        torch.equal(a, b) for a, b in zip(seeded(1, loaded, X).values(), seeded(1, guide, X).values(), strict=True)
    )
