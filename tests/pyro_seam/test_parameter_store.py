"""Pyro's parameter store: two live models of one name stay apart, what is loaded is taken in."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive
from torch import nn

import pyro_vd as vd
from helpers.guide_cases import FAMILIES, NAMES, X, Y, prior_for, seeded
from pyro_vd import guides
from pyro_vd.guides import AutoSparseVD, mixed_guide

ELBO = vd.TraceVD_ELBO("shared", analytic_only=False)


class Pair:
    """A net, its model with a noise scale, and an automatic guide."""

    def __init__(self, name="AutoSparseVD", options=None, width=3, hand_written=False):
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
        bnn = self.bnn = vd.BayesianModule(self.net, prior_for(name))

        def model(x, y=None):
            extra = (
                pyro.sample("w", vd.ImproperLogUniform().expand([width]).to_event(1)).mean() if hand_written else 0.0
            )
            scale = pyro.sample("noise", dist.Gamma(2.0, 2.0))
            output = bnn(x) + extra
            with vd.data_plate(50, len(x)):
                return pyro.sample("y", dist.Normal(output, scale).to_event(1), obs=y)

        self.model = model
        if name == "mixed":
            self.guide = mixed_guide(model, AutoSparseVD(model))
        else:
            self.guide = getattr(guides, name)(model, **(options or {}))

    def train(self, steps=3):
        svi = SVI(self.model, self.guide, pyro.optim.Adam({"lr": 0.05}), ELBO)
        for _ in range(steps):
            svi.step(X, Y)

    def state(self):
        held = {**self.guide.state_dict(), **{f"bnn.{key}": value for key, value in self.bnn.state_dict().items()}}
        return {key: value.clone() for key, value in held.items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


USES = {
    "guide": lambda pair: pair.guide(X, Y),
    "loss": lambda pair: ELBO.loss(pair.model, pair.guide, X, Y),
    "loss module": lambda pair: ELBO(pair.model, pair.guide)(X, Y),
    "prediction": lambda pair: vd.posterior_predictive(pair.model, pair.guide, X, num_samples=2),
    "Predictive": lambda pair: Predictive(pair.model, guide=pair.guide, num_samples=2)(X),
    "posteriors": lambda pair: pair.guide.posteriors(),
    "prune": lambda pair: vd.prune(pair.bnn, pair.guide),
    "median": lambda pair: pair.guide.median(X),
}


@pytest.mark.parametrize("cleared", [True, False])
@pytest.mark.parametrize("use", USES)
def test_every_use_of_one_model_after_training_another_leaves_both_as_they_were(use, cleared):
    first, other = Pair(), Pair()
    first.train()
    expected = first.state()
    if cleared:
        pyro.clear_param_store()
    start = other.state()
    USES[use](other)
    assert all(torch.equal(value, other.state()[key]) for key, value in start.items()), "another model's values came in"
    other.train()
    others = other.state()
    for pair in (first, other, first):
        USES[use](pair)
    assert same(first.state(), expected) and same(other.state(), others)


@pytest.mark.parametrize("name, options", [*FAMILIES, pytest.param("mixed", {}, id="mixed")])
def test_two_models_trained_in_turns_are_as_those_trained_alone(name, options):
    alone = []
    for seed in (1, 2):
        pyro.clear_param_store()
        pair = seeded(seed, Pair, name, options)
        pair.guide(X, Y)
        pyro.set_rng_seed(7)
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), ELBO)
        for _ in range(3):
            svi.step(X, Y)
        alone.append(pair.state())
    pyro.clear_param_store()
    pairs = []
    for seed in (1, 2):
        pair = seeded(seed, Pair, name, options)
        pair.guide(X, Y)
        pyro.set_rng_seed(7)
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), ELBO)
        pairs.append((pair, svi, torch.get_rng_state()))
    for _ in range(3):
        for i, (pair, svi, noise) in enumerate(pairs):
            torch.set_rng_state(noise)
            svi.step(X, Y)
            pairs[i] = pair, svi, torch.get_rng_state()
    assert all(same(pair.state(), state) for (pair, _, _), state in zip(pairs, alone, strict=True))
    assert not same(alone[0], alone[1])


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("how", ["file", "state", "copied state"])
@pytest.mark.parametrize("name", [*NAMES, "mixed"])
def test_a_stored_checkpoint_is_taken_in_by_fresh_and_by_used_objects(name, how, fresh, tmp_path):
    first = Pair(name)
    first.train()
    expected = first.state()
    store = pyro.get_param_store()
    store.save(tmp_path / "store")
    state = store.get_state() if how == "state" else copy.deepcopy(store.get_state())
    pyro.clear_param_store()
    other = Pair(name)
    if not fresh:
        other.train(1)
    store.load(tmp_path / "store") if how == "file" else store.set_state(state)
    ELBO.loss(other.model, other.guide, X, Y)
    got = other.state()
    learned = [key for key in expected if key.startswith("bnn.") == key.endswith("bias") and key in got]
    assert len(learned) >= 6 and all(torch.equal(got[key], expected[key]) for key in learned)
    other.train(1)
    assert not same(got, other.state())
    assert same(first.state(), expected)


def test_a_checkpoint_of_the_store_brings_back_a_model_in_training(tmp_path):
    pair = Pair()
    pair.train()
    expected = pair.state()
    pyro.get_param_store().save(tmp_path / "store")
    pair.train()
    assert not same(pair.state(), expected)
    pyro.get_param_store().load(tmp_path / "store")
    ELBO.loss(pair.model, pair.guide, X, Y)
    assert same(pair.state(), expected)


def test_a_loaded_state_dict_is_not_overwritten_by_what_another_model_left_in_the_store():
    first, other = Pair(), Pair()
    other.train()
    pyro.clear_param_store()
    first.train()
    fresh = Pair()
    fresh.guide.load_state_dict(other.guide.state_dict())
    fresh.bnn.load_state_dict(other.bnn.state_dict())
    ELBO.loss(fresh.model, fresh.guide, X, Y)
    assert same(fresh.state(), other.state())


def test_a_copy_keeps_its_values_while_the_original_is_trained():
    pair = Pair()
    pair.train()
    twin = copy.deepcopy(pair.guide)
    expected = {key: value.clone() for key, value in twin.state_dict().items()}
    pair.train()
    for guide in (twin, pair.guide, twin):
        guide(X, Y)
    assert same(dict(twin.state_dict()), expected)
    trained = pair.guide.state_dict()
    assert not any(torch.equal(trained[key], value) for key, value in expected.items())


@pytest.mark.parametrize("use", ["guide", "loss", "prediction", "posteriors", "prune"])
def test_a_model_of_other_shapes_of_one_name_is_an_error_that_says_what_to_write(use):
    first, other = Pair(), Pair(width=5)
    first.train()
    expected = first.state()
    with pytest.raises(ValueError, match=r"parameter '.*': expected shape .*clear_param_store\(\).*name="):
        USES[use](other)
    assert same(first.state(), expected)
    pyro.clear_param_store()
    other.train()
    with pytest.raises(ValueError, match=r"clear_param_store\(\).*name="):
        USES[use](first)
    pyro.clear_param_store()
    USES[use](first)
    assert same(first.state(), expected)


def test_weights_of_a_hand_written_model_stay_apart_too():
    first, other = Pair(hand_written=True), Pair(hand_written=True)
    first.train()
    expected = first.state()
    other.train()
    first.guide(X, Y)
    assert same(first.state(), expected)
    tensors = {value.data_ptr() for value in first.guide.parameters()}
    assert tensors.isdisjoint({value.data_ptr() for value in other.guide.parameters()})


def test_a_parameter_that_is_not_contiguous_is_the_one_that_is_trained():
    net = nn.Linear(3, 2)
    net.bias = nn.Parameter(torch.zeros(2, 2)[:, 0])
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    bnn(torch.ones(1, 3))
    assert pyro.get_param_store()._params["net.bias"] is net.bias
