"""CompiledSVI takes the steps of pyro.infer.SVI: optimizers, schedules, clipping, accumulation, batches, NaN."""

from __future__ import annotations

import functools
import gc
import math

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.optim import lr_scheduler

import pyro_vd as vd
from helpers.svi_runs import HandWritten, Task, assert_same, run, values, without_compiler

ADAM = functools.partial(torch.optim.Adam, lr=0.02)
SGD = functools.partial(torch.optim.SGD, lr=0.001)


def linear():
    return nn.Linear(5, 3)


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """The recorded graphs, which run as they are; in double precision, so that equal means equal."""
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


def start(optim=ADAM, layers=linear, loss=None, sizes=(8, 8, 8, 8), **options):
    task = Task(layers, sizes=sizes)
    svi = vd.CompiledSVI(task.model, task.guide, optim, loss or vd.TraceVD_ELBO(), **{"strict": True, **options})
    return task, svi


def expect_steps_of(reference, optim, steps=12, layers=linear, sizes=(8, 8, 8, 8), **options):
    """Losses and parameters of ``reference`` after as many steps."""
    task = Task(layers, sizes=sizes)
    losses = run(reference(task.model, task.guide, optim, vd.TraceVD_ELBO(), **options).step, task.batches, steps)
    return losses, values()


OPTIMIZERS = {
    "Adam": ADAM,
    "Adam-amsgrad-decay": functools.partial(torch.optim.Adam, lr=0.02, amsgrad=True, weight_decay=0.1),
    "Adam-fused": functools.partial(torch.optim.Adam, lr=0.02, fused=True),
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.02, weight_decay=0.3),
    "SGD": SGD,
    "SGD-nesterov": functools.partial(torch.optim.SGD, lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.3),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=0.02, centered=True, momentum=0.5),
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=0.1, lr_decay=0.1),
    "NAdam": functools.partial(torch.optim.NAdam, lr=0.02),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_torch_optimizers(name):
    optim = OPTIMIZERS[name]
    losses, expected = expect_steps_of(HandWritten, optim)
    task, svi = start(optim)
    assert run(svi.step, task.batches, 12) == pytest.approx(losses, rel=1e-9)
    assert len(svi._programs) == 1
    assert_same(values(), expected, 1e-9)


def groups_of(parameters):
    """Each tensor with options of its own."""
    options = [{"lr": 0.1}, {"lr": 0.001, "betas": (0.5, 0.9)}, {"lr": 0.03, "weight_decay": 1.0}]
    return torch.optim.Adam([{"params": [p], **o} for p, o in zip(parameters, options, strict=True)])


def test_groups_of_parameters_keep_their_options():
    losses, expected = expect_steps_of(HandWritten, groups_of)
    task, svi = start(groups_of)
    assert run(svi.step, task.batches, 12) == pytest.approx(losses, rel=1e-9)
    assert_same(values(), expected, 1e-9)


def per_parameter(name):
    return {"lr": 0.1 if "sigma" in name else 0.01, "betas": (0.8, 0.99)}


PYRO = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.02}),
    "Adam-callable": lambda: pyro.optim.Adam(per_parameter),
    "SGD-clip_norm": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}, {"clip_norm": 2.0}),
    "RMSprop-clip_value": lambda: pyro.optim.RMSprop({"lr": 0.02}, clip_args={"clip_value": 0.5}),
}


@pytest.mark.parametrize("name", PYRO)
def test_steps_of_pyro_optimizers(name):
    losses, expected = expect_steps_of(SVI, PYRO[name]())
    task, svi = start(PYRO[name]())
    assert run(svi.step, task.batches, 12) == pytest.approx(losses, rel=1e-9)
    assert len(svi._programs) == 1
    assert_same(values(), expected, 1e-9)


def test_clip_norm():
    losses, expected = expect_steps_of(HandWritten, SGD, clip_norm=3.0)
    unclipped = expect_steps_of(HandWritten, SGD)[0]
    assert losses[-1] != pytest.approx(unclipped[-1], rel=1e-3)  # it does something
    task, svi = start(SGD, clip_norm=3.0)
    assert run(svi.step, task.batches, 12) == pytest.approx(losses, rel=1e-9)
    assert_same(values(), expected, 1e-9)


def test_accumulate_averages_gradients():
    losses, expected = expect_steps_of(HandWritten, ADAM, steps=18, accumulate=3, clip_norm=3.0)
    task, svi = start(ADAM, accumulate=3, clip_norm=3.0)
    found, seen = [], []
    pyro.set_rng_seed(3)
    for i in range(18):
        found.append(float(svi.step(*task.batches[i % 4])))
        seen.append(values())
    assert found == pytest.approx(losses, rel=1e-9)
    assert_same(seen[-1], expected, 1e-9)
    moved = [any(not torch.equal(seen[i][n], seen[i - 1][n]) for n in expected) for i in range(1, 18)]
    assert moved == [i % 3 == 2 for i in range(1, 18)]
    assert len(svi._programs) == 2  # with and without an update


def test_schedules_need_no_new_program(graphs):
    def schedule(optimizer):
        warm_up = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 + 0.3 * step)
        return [warm_up, lr_scheduler.StepLR(optimizer, 4, 0.1)]

    found = []
    for kind in (vd.CompiledSVI, HandWritten):
        task, loss, schedulers = Task(linear), vd.TraceVD_ELBO(kl_weight=0.0), []
        svi = kind(task.model, task.guide, ADAM, loss)
        pyro.set_rng_seed(3)
        losses = []
        for i in range(12):
            loss.kl_weight = i / 12 if i < 8 else torch.tensor(0.9)
            losses.append(float(svi.step(*task.batches[i % 4])))
            for one in schedulers:
                one.step()
            schedulers = schedulers or schedule(svi.optimizer)
        found.append((losses, values()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert_same(found[0][1], found[1][1], 1e-9)
    assert len(graphs) == 1


def test_schedulers_of_pyro_need_no_new_program(graphs):
    found = []
    for kind in (vd.CompiledSVI, SVI):
        task = Task(linear)
        scheduler = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5})
        svi = kind(task.model, task.guide, scheduler, vd.TraceVD_ELBO())
        pyro.set_rng_seed(3)
        losses = []
        for i in range(10):
            losses.append(float(svi.step(*task.batches[i % 4])))
            scheduler.step()
        found.append((losses, values()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert_same(found[0][1], found[1][1], 1e-9)
    assert len(graphs) == 1


def test_other_options_of_the_optimizer_are_followed(graphs):
    found = []
    for kind in (vd.CompiledSVI, HandWritten):
        task = Task(linear)
        svi = kind(task.model, task.guide, ADAM, vd.TraceVD_ELBO())
        losses = run(svi.step, task.batches, 4)
        svi.optimizer.param_groups[0]["weight_decay"] = 2.0
        found.append((losses + run(svi.step, task.batches, 4), values()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert_same(found[0][1], found[1][1], 1e-9)
    assert len(graphs) == 2


def test_a_smaller_last_batch_is_one_program_more(graphs):
    losses, expected = expect_steps_of(HandWritten, ADAM, sizes=(8, 8, 3))
    task, svi = start(sizes=(8, 8, 3))
    assert run(svi.step, task.batches, 12) == pytest.approx(losses, rel=1e-9)
    assert_same(values(), expected, 1e-9)
    assert len(graphs) == 2


def test_step_returns_the_loss_without_a_graph():
    task, svi = start()
    for _ in range(4):
        loss = svi.step(*task.batches[0])
        assert loss.shape == () and not loss.requires_grad and loss.grad_fn is None
        kept = float(loss)
        svi.step(*task.batches[1])
        assert float(loss) == kept  # later steps write elsewhere


def test_steps_hold_on_to_nothing():
    task, svi = start()

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    run(svi.step, task.batches, 20)
    before = tensors()
    run(svi.step, task.batches, 200)
    assert tensors() == before


def test_evaluate_loss_is_that_of_svi_and_changes_nothing():
    task, svi = start()
    run(svi.step, task.batches, 4)
    before = values()
    reference = SVI(task.model, task.guide, pyro.optim.Adam({"lr": 0.02}), vd.TraceVD_ELBO())
    losses = [run(one.evaluate_loss, task.batches, 4) for one in (svi, reference)]
    assert losses[0] == losses[1]
    assert_same(values(), before, 0.0)
    loss = svi.evaluate_loss(*task.batches[0])
    assert loss.shape == () and not loss.requires_grad
    assert math.isfinite(loss)
