"""A step without a handler that asks for parameters sends none of them through Pyro; one that asks gets them all."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

ALL = [
    *(f"AutoSparseVD.{quantity}.net.{i}.weight" for i in (0, 2) for quantity in ("locs", "log_sigma2s")),
    *(f"net.{i}.bias" for i in (0, 2)),
]


def program():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), vd.ImproperLogUniform())

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(50, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = AutoSparseVD(model)
    return model, guide, (torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))


class Seen(Messenger):
    """Notes the parameters that meet it, and gives those in ``values`` another value."""

    def __init__(self, sees_parameters: bool, values=None):
        super().__init__()
        self.sees_parameters, self.names, self.values = sees_parameters, [], values or {}

    def _pyro_param(self, msg):
        self.names.append(msg["name"])
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def evaluated(around=None):
    """Loss and gradients of a second evaluation, the same in every call."""
    model, guide, data = program()
    loss = vd.TraceVD_ELBO()(model, guide)
    loss(*data)
    pyro.set_rng_seed(1)
    if around is None:
        value = loss(*data)
    else:
        with around:
            value = loss(*data)
    value.backward()
    return value, {name: parameter.grad for name, parameter in loss.named_parameters()}


def test_a_handler_that_asks_sees_all_of_them_and_changes_no_number():
    handler, blind = Seen(True), Seen(False)
    expected, gradients = evaluated(handler)
    assert sorted(handler.names) == sorted(ALL)
    for around in (blind, None):
        value, others = evaluated(around)
        assert torch.equal(value, expected) and others.keys() == gradients.keys()
        assert all(torch.equal(others[name], gradients[name]) for name in gradients)
    assert blind.names == []


def test_a_value_that_a_handler_gives_is_used():
    torch.manual_seed(3)
    bias = torch.randn(4)
    plain, _ = evaluated()
    changed, gradients = evaluated(Seen(True, {"net.0.bias": bias}))
    assert not torch.equal(plain, changed)
    assert [name for name, gradient in gradients.items() if gradient is None] == ["referenced.0.net.0.bias"]


def test_svi_meets_every_parameter_in_every_step():
    model, guide, data = program()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), vd.TraceVD_ELBO())
    for _ in range(3):
        before = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
        svi.step(*data)
        now = dict(pyro.get_param_store().named_parameters())
        assert sorted(now) == sorted(ALL)
        assert all(not torch.equal(now[name], before[name]) for name in before)


def test_a_loaded_store_is_adopted_by_a_step_that_sends_no_parameters():
    model, guide, data = program()
    loss = vd.TraceVD_ELBO()(model, guide)
    loss(*data)
    state = pyro.get_param_store().get_state()
    for name in state["params"]:
        state["params"][name] = torch.full_like(state["params"][name], 0.25).requires_grad_()
    pyro.get_param_store().set_state(state)
    loss(*data)
    assert all(bool((parameter == 0.25).all()) for parameter in loss.parameters())
