"""What a program would leave out: hooks on gradients and on all optimizers, numbers that an optimizer counts in."""

from __future__ import annotations

import copy
import functools
import pickle

import pyro
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import pyro_vd as vd
from helpers.svi_runs import Task, run, without_compiler

pytestmark = pytest.mark.slow  # records many steps
ADAM = functools.partial(torch.optim.Adam, lr=0.1)
WHEN_FIRST, WHEN_LATER = "before the first step", "after compiled steps"
WHEN = {WHEN_FIRST: 0, WHEN_LATER: 4}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    return without_compiler(monkeypatch)


def started(when, optim=ADAM):
    task = Task(lambda: nn.Linear(5, 3))
    svi = vd.CompiledSVI(task.model, task.guide, optim, vd.TraceVD_ELBO())
    run(svi.step, task.batches, WHEN[when])
    return task, svi


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("of", ["net", "guide"])
def test_a_hook_on_a_gradient_is_called_in_every_step(when, of):
    """One that makes the gradient 0 keeps the parameter, as Adam does from its first step with such a gradient."""
    task, svi = started("before the first step")
    parameter = task.bnn.net.bias if of == "net" else next(task.guide.parameters())
    run(svi.step, task.batches, WHEN[when])
    seen = []
    handle = parameter.register_hook(lambda gradient: seen.append(1) or 0 * gradient)
    before = parameter.detach().clone()
    with pytest.warns(UserWarning, match="a parameter has hooks on its gradient .register_hook., which no compiled"):
        run(svi.step, task.batches, 5)
    assert len(seen) == 5
    handle.remove()
    if when == "before the first step":
        assert torch.equal(parameter, before)


@pytest.mark.parametrize("when", WHEN)
def test_a_hook_that_no_step_would_call_is_refused_and_nothing_changes(when):
    task, svi = started(when)
    bias = task.bnn.net.bias
    handle = bias.register_post_accumulate_grad_hook(lambda parameter: None)
    before = [p.detach().clone() for p in (*task.guide.parameters(), *task.bnn.parameters())]
    for _ in range(2):
        with pytest.raises(ValueError, match="'.*bias': expected no hook of register_post_accumulate_grad_hook"):
            svi.step(*task.batches[0])
    after = (*task.guide.parameters(), *task.bnn.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    handle.remove()
    svi.step(*task.batches[0])
    assert not torch.equal(bias, before[-1])


@pytest.mark.parametrize(
    ("when", "register"),
    [(WHEN_FIRST, register_optimizer_step_pre_hook), (WHEN_LATER, register_optimizer_step_post_hook)],
)
def test_a_hook_on_all_optimizers_is_called_in_every_step(when, register):
    task, svi = started(when)
    seen = []
    handle = register(lambda *args: seen.append(1))
    try:
        with pytest.warns(UserWarning, match="the optimizer has hooks on its steps"):
            run(svi.step, task.batches, 4)
    finally:
        handle.remove()
    assert len(seen) == 4


class Counting(torch.optim.Optimizer):
    """Descent whose rate falls with a count, which it keeps where ``place`` says."""

    def __init__(self, parameters, lr, place):
        super().__init__(parameters, {"lr": lr})
        self.place, self.n, self.counts = place, 0, {"n": 0}

    @torch.no_grad()
    def step(self, closure=None):
        if self.place == "attribute":
            self.n += 1
        else:
            self.counts["n"] += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad * (-group["lr"] / max(self.n, self.counts["n"])))


@pytest.mark.parametrize("place", ["attribute", "dict"])
def test_an_optimizer_that_counts_in_an_attribute_is_refused_and_nothing_changes(place):
    task, svi = started("before the first step", functools.partial(Counting, lr=1e-3, place=place))
    svi.step(*task.batches[0])
    before = [p.detach().clone() for p in task.guide.parameters()]
    with pytest.raises(ValueError, match=rf"got Counting, .*counts \['{'n' if place == 'attribute' else 'counts'}'\]"):
        run(svi.step, task.batches, 3)
    assert all(torch.equal(p, old) for p, old in zip(task.guide.parameters(), before, strict=True))
    assert (svi.optimizer.n, svi.optimizer.counts["n"]) == ((1, 0) if place == "attribute" else (0, 1))


@pytest.mark.parametrize("rate", ["0.1", None, float("nan")])
def test_a_rate_that_is_no_number_is_named_and_nothing_changes(rate):
    task, svi = started("after compiled steps")
    svi.optimizer.param_groups[0]["lr"] = rate
    before = [p.detach().clone() for p in task.guide.parameters()]
    with pytest.raises(ValueError, match=f"optim: expected a finite learning rate, got '?{rate}'?; nothing"):
        svi.step(*task.batches[0])
    assert all(torch.equal(p, old) for p, old in zip(task.guide.parameters(), before, strict=True))


@pytest.mark.parametrize("make", [copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_with_what_to_save_instead(make):
    _, svi = started("before the first step")
    with pytest.raises(TypeError, match=r"CompiledSVI: expected no copy .* save svi.state_dict\(\)"):
        make(svi)


def test_the_optimizer_of_a_guide_by_hand_is_there_after_a_step_and_the_error_says_so():
    def model(x):
        pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))

    def guide(x):
        pyro.sample("x", pyro.distributions.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    guide(1)
    svi = vd.CompiledSVI(model, guide, ADAM, vd.TraceVD_ELBO())
    with pytest.raises(AttributeError, match="makes them when it is called; take a step before"):
        _ = svi.optimizer
    svi.step(torch.ones(1))
    assert svi.optimizer.param_groups[0]["params"]
