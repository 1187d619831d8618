"""compile_loss(warm=True): the loss is eager while another process compiles it. A graph runs as it is recorded."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import Task, without_compiler
from pyro_vd.compiled import ahead


class Process:
    """Stands for the other process, which is at work for three calls."""

    begun: list[Process] = []

    def __init__(self, command, **options):
        self.left, self.returncode = 3, None
        self.begun.append(self)

    def poll(self):
        self.left -= self.returncode is None
        self.returncode = 0 if self.left < 0 else None
        return self.returncode

    def kill(self):
        self.returncode = -9

    def wait(self):
        assert self.returncode is not None


@pytest.fixture
def graphs(monkeypatch):
    Process.begun.clear()
    monkeypatch.setattr(ahead.subprocess, "Popen", Process)
    return without_compiler(monkeypatch)


def trained(warm: bool, calls: int = 9):
    """The losses, how many graphs there were after each call, and the parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    task = Task(layers=functools.partial(nn.Linear, 5, 3))
    loss = vd.TraceVD_ELBO()(task.model, task.guide)
    loss(*task.batches[0])
    compiled = vd.compile_loss(loss, strict=True, warm=warm)
    optimizer = torch.optim.Adam(compiled.parameters(), lr=0.01)
    losses = []
    for step in range(calls):
        optimizer.zero_grad()
        value = compiled(*task.batches[step % 4])
        value.backward()
        optimizer.step()
        losses.append(value.item())
        yield losses, {name: one.detach().clone() for name, one in compiled.named_parameters()}, torch.get_rng_state()


def test_the_loss_is_eager_until_the_other_process_is_done_and_the_same_all_along(graphs):
    steps = trained(True)
    had = [(found, len(graphs)) for found in steps]
    found, had = had[-1][0], [number for _, number in had]
    # The first call begins the process, the next three find it at work, the fifth loads what it has left.
    assert had == [0, 0, 0, 0, 1, 1, 1, 1, 1] and len(Process.begun) == 1
    without = list(trained(False))[-1]
    assert len(graphs) == 2 and len(Process.begun) == 1
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(without[0]), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[2], without[2])  # the same random numbers
    for name, value in without[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


def test_a_loss_that_fails_while_it_compiles_is_an_error_and_no_reason_to_stay_eager(graphs):
    pyro.clear_param_store()
    task = Task(layers=functools.partial(nn.Linear, 5, 3))
    loss = vd.TraceVD_ELBO()(task.model, task.guide)
    x, *rest = task.batches[0]
    loss(x, *rest)
    compiled = vd.compile_loss(loss, warm=True)
    with pytest.raises(ValueError, match="NaN"):
        compiled(torch.full_like(x, torch.nan), *rest)
    for _ in range(4):
        compiled(x, *rest)
    assert len(graphs) == 1 and not compiled._programs.ended


@pytest.mark.parametrize("warm", [1, "yes", None])
def test_warm_is_true_or_false(warm):
    task = Task(layers=functools.partial(nn.Linear, 5, 3))
    with pytest.raises(TypeError, match="warm"):
        vd.compile_loss(vd.TraceVD_ELBO()(task.model, task.guide), warm=warm)
