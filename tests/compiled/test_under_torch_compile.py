"""torch.compile cannot follow Pyro's handlers: a model, a guide or a loss under it is refused; a net is not."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import ADAM, Task, run
from pyro_vd.guides import AutoSparseVD

compiled = functools.partial(torch.compile, backend="eager")
REFUSED = pytest.raises(TypeError, match="expected a model, a guide and a loss that are not under torch.compile, which")


@pytest.fixture(autouse=True)
def fresh():
    yield
    torch.compiler.reset()


def svi_of(model, guide, kind=pyro.infer.SVI):
    return kind(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO())


USES = {
    "model": lambda task: svi_of(compiled(task.model), task.guide).step(*task.batches[0]),
    "guide": lambda task: svi_of(task.model, compiled(task.guide)).step(*task.batches[0]),
    "model of a guide": lambda task: AutoSparseVD(compiled(task.model)),
    "model of CompiledSVI": lambda task: vd.CompiledSVI(compiled(task.model), task.guide, ADAM, vd.TraceVD_ELBO()),
    "model of a loss": lambda task: vd.TraceVD_ELBO()(compiled(task.model), task.guide),
    "posterior_predictive": lambda task: vd.posterior_predictive(
        compiled(task.model), task.guide, task.batches[0][0], num_samples=2
    ),
    "predictive_distribution": lambda task: vd.predictive_distribution(
        task.model, compiled(task.guide), task.batches[0][0], num_samples=2
    ),
    "loss": lambda task: compiled(vd.TraceVD_ELBO()(task.model, task.guide))(*task.batches[0]),
    "step": lambda task: compiled(svi_of(task.model, task.guide).step)(*task.batches[0]),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_compile_cannot_follow_is_refused(name):
    task = Task(lambda: nn.Linear(5, 3))
    with REFUSED:
        USES[name](task)


def test_a_loss_that_has_been_called_is_refused_too():
    task = Task(lambda: nn.Linear(5, 3))
    loss = vd.TraceVD_ELBO()(task.model, task.guide)
    loss(*task.batches[0])
    loss.compile(backend="eager")
    with REFUSED:
        loss(*task.batches[0])


def test_a_net_under_torch_compile_and_what_it_leaves_alone_are_taken():
    losses = []
    for wrap in (lambda net: net, compiled):
        task = Task(lambda wrap=wrap: wrap(nn.Linear(5, 3)))
        losses.append(run(svi_of(torch.compiler.disable(task.model), task.guide).step, task.batches, 3))
    assert losses[0] == losses[1]
