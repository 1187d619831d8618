"""An interrupted step leaves what the user's own code has counted, and so the third call is interrupted only once."""

import functools
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import without_compiler
from pyro_vd.guides import AutoMeanField

X = torch.ones(4, 3)
ADAM = functools.partial(torch.optim.Adam, lr=0.1)


class Net(nn.Linear):
    calls = 0

    def forward(self, x):
        self.last = super().forward(x)  # a tensor, which is put back
        return self.last


def counters(net):
    count, made = 0, {}

    def in_a_closure():
        nonlocal count
        count += 1
        return count

    def in_a_new_entry():
        made["calls"] = made.get("calls", 0) + 1
        return made["calls"]

    def counts_in(table, key="calls"):
        def counted():
            table[key] += 1
            return table[key]

        return counted

    settings = SimpleNamespace(calls=0)
    return {
        "closure": in_a_closure,
        "empty dict": in_a_new_entry,
        "dict": counts_in({"calls": 0}),
        "list": counts_in([0], 0),
        "object": counts_in(vars(settings)),
        "module": counts_in(vars(net)),
    }


RECORDED = [pytest.param(place, 2, marks=pytest.mark.slow) for place in ("dict", "module")]  # while a step is recorded
EAGER = [(place, 1) for place in ("closure", "empty dict", "dict", "list", "object", "module")]


@pytest.mark.parametrize(("place", "at"), EAGER + RECORDED)
def test_a_model_that_interrupts_one_call_does_so_once(place, at, monkeypatch):
    without_compiler(monkeypatch)
    net = Net(3, 1)
    net.calls = 0
    bnn, counted = vd.BayesianModule(net, dist.Normal(0.0, 1.0)), counters(net)[place]

    def model(x):
        mean = bnn(x).squeeze(-1)
        if counted() == at:
            raise KeyboardInterrupt
        with vd.data_plate(4, len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.zeros(4))

    guide = AutoMeanField(model)
    svi = vd.CompiledSVI(model, guide, ADAM, vd.TraceVD_ELBO())
    interrupts = 0
    for _ in range(at + 1):
        before = [p.detach().clone() for p in (*guide.parameters(), net.bias)], vars(net).get("last")
        try:
            svi.step(X)
        except KeyboardInterrupt:
            interrupts += 1
            after = (*guide.parameters(), net.bias)
            assert all(torch.equal(p, old) for p, old in zip(after, before[0], strict=True))
            assert vars(net).get("last") is before[1]
    assert interrupts == 1
