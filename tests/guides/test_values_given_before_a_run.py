"""Values that a new guide or its net is given, in any way, before the model has run: none is lost."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.guide_cases import FAMILIES, SITES, X, Y, fresh_guide, make_model, two_parts


def _by_assign(module, state):
    module.load_state_dict(state, assign=True)


def _by_data(module, state):
    for name, parameter in module.named_parameters():
        parameter.data.copy_(state[name])


def _as_data(module, state):
    for name, parameter in module.named_parameters():
        parameter.data = state[name].clone()


def _as_vector(module, state):
    values = [state[name].flatten() for name, _ in module.named_parameters()]
    nn.utils.vector_to_parameters(torch.cat(values), module.parameters())


def _as_other_parameters(module, state):
    for name in [name for name, _ in module.named_parameters()]:
        path, _, key = name.rpartition(".")
        module.get_submodule(path)._parameters[key] = nn.Parameter(state[name].clone())


WAYS = (nn.Module.load_state_dict, _by_assign, _by_data, _as_data, _as_vector, _as_other_parameters)


def other(module):
    """Other values of a module's parameters."""
    return {name: value.detach() - 0.25 for name, value in module.named_parameters()}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name, options", FAMILIES)
def test_a_guide_that_was_given_values_keeps_them_and_one_that_was_not_follows_its_net(name, options, way):
    for given in (False, True):
        pyro.clear_param_store()
        _, net, guide = fresh_guide(name, options)
        expected = other(net)
        way(net, {key: value.clone() for key, value in expected.items()})
        if given:
            state = other(guide)
            way(guide, {**guide.state_dict(), **{key: value.clone() for key, value in state.items()}})
            expected = {site.removeprefix("net."): state[f"locs.{site}"] for site in SITES}
        guide(X, Y)
        for site in SITES:
            assert torch.equal(guide.locs.get_parameter(site), expected[site.removeprefix("net.")]), (given, site)


def test_the_loss_of_loaded_objects_is_that_of_the_saved_ones():
    def make():
        pyro.clear_param_store()
        model, _ = make_model(vd.ImproperLogUniform())
        return vd.TraceVD_ELBO()(model, two_parts(model))

    saved, loaded = make(), make()
    saved(X, Y)
    loaded.load_state_dict({key: value.clone() for key, value in saved.state_dict().items()}, assign=True)
    torch.manual_seed(1)
    expected = saved(X, Y)
    loaded(X, Y)
    torch.manual_seed(1)
    assert torch.equal(loaded(X, Y), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_a_guide_made_on_the_meta_device_is_loaded(assign):
    _, net, guide = fresh_guide("AutoSparseVD", {})
    with torch.device("meta"):
        model, empty, fresh = fresh_guide("AutoSparseVD", {})
    if not assign:
        empty.to_empty(device="cpu")
        fresh.to_empty(device="cpu")
    empty.load_state_dict(net.state_dict(), assign=assign)
    state = other(guide)
    fresh.load_state_dict(state, assign=assign)
    fresh(X, Y)
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in state.items())
