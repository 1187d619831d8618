"""Schedulers that change Adam's first beta in every step: one program, no warning, the steps of a plain loop."""

from __future__ import annotations

import copy
import functools

import pyro
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import pyro_vd as vd
from helpers.svi_runs import Task, without_compiler

pytestmark = pytest.mark.slow  # records many steps
SCHEDULERS = {
    "OneCycleLR": functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
    "CyclicLR": functools.partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=5),
}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


def made(optim=torch.optim.Adam):
    pyro.clear_param_store()
    task = Task(lambda: nn.Linear(5, 3))
    x, y = task.batches[0]
    return task, functools.partial(optim, lr=0.01), (x.double(), y)


def parameters(task):
    return torch.cat([p.detach().flatten() for p in (*task.guide.parameters(), *task.bnn.net.parameters())])


@pytest.mark.parametrize("optim", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_steps_are_those_of_a_plain_loop_and_there_is_one_program(name, optim, graphs):
    task, adam, batch = made(optim)
    svi = vd.CompiledSVI(task.model, task.guide, adam, vd.TraceVD_ELBO(), strict=True)  # warnings are errors
    scheduler = SCHEDULERS[name](svi.optimizer)
    for step in range(8):
        torch.manual_seed(step)
        svi.step(*batch)
        scheduler.step()
    found, betas = parameters(task), svi.optimizer.param_groups[0]["betas"]
    assert len(graphs) == 1

    task, adam, batch = made(optim)
    loss = vd.TraceVD_ELBO()(task.model, task.guide)
    optimizer = adam(list(loss.parameters()))
    scheduler = SCHEDULERS[name](optimizer)
    for step in range(8):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss(*batch).backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(found, parameters(task), rtol=1e-9, atol=1e-12)
    assert betas == optimizer.param_groups[0]["betas"] != optimizer.defaults["betas"]


def test_a_scheduler_of_epochs_has_one_program_from_the_first_epoch_on(graphs):
    task, adam, batch = made()
    svi = vd.CompiledSVI(task.model, task.guide, adam, vd.TraceVD_ELBO(), strict=True)
    scheduler = SCHEDULERS["OneCycleLR"](svi.optimizer)
    for _ in range(3):
        for _ in range(3):
            svi.step(*batch)
        scheduler.step()
    assert len(graphs) == 1


def test_a_training_goes_on_bit_for_bit():
    def start():
        task, adam, batch = made()
        svi = vd.CompiledSVI(task.model, task.guide, adam, vd.TraceVD_ELBO(), strict=True)
        return task, svi, SCHEDULERS["OneCycleLR"](svi.optimizer), batch

    def go_on(svi, scheduler, batch, steps):
        for step in steps:
            torch.manual_seed(step)
            svi.step(*batch)
            scheduler.step()

    task, svi, scheduler, batch = start()
    go_on(svi, scheduler, batch, range(5))
    owners = (task.guide, task.bnn, svi, scheduler)
    states = copy.deepcopy([owner.state_dict() for owner in owners])
    go_on(svi, scheduler, batch, range(5, 9))
    expected = parameters(task)
    task, svi, scheduler, batch = start()
    for owner, state in zip((task.guide, task.bnn, svi, scheduler), states, strict=True):
        owner.load_state_dict(state)
    go_on(svi, scheduler, batch, range(5, 9))
    assert torch.equal(parameters(task), expected)


@pytest.mark.parametrize("betas", [(1.5, 0.999), (float("nan"), 0.999)])
def test_what_are_no_betas_is_named_and_changes_nothing(betas):
    task, adam, batch = made()
    svi = vd.CompiledSVI(task.model, task.guide, adam, vd.TraceVD_ELBO())
    scheduler = SCHEDULERS["OneCycleLR"](svi.optimizer)
    for _ in range(3):
        svi.step(*batch)
        scheduler.step()
    before = parameters(task)
    svi.optimizer.param_groups[0]["betas"] = betas
    with pytest.raises(ValueError, match="optim: expected betas of which the first may change, in .0, 1., got"):
        svi.step(*batch)
    assert torch.equal(parameters(task), before)


def test_a_second_beta_that_changes_is_in_no_program_of_before(graphs):
    task, adam, batch = made()
    svi = vd.CompiledSVI(task.model, task.guide, adam, vd.TraceVD_ELBO(), strict=True)
    scheduler = SCHEDULERS["OneCycleLR"](svi.optimizer)
    for _ in range(3):
        svi.step(*batch)
        scheduler.step()
    before = parameters(task)
    group = svi.optimizer.param_groups[0]
    group["betas"] = (group["betas"][0], 0.5)
    try:
        svi.step(*batch)
        assert len(graphs) == 2
    except ValueError as error:
        assert "expected betas of which the first may change" in str(error)
        assert torch.equal(parameters(task), before)
