"""CompiledSVI(warm=True): another process compiles while steps are eager."""

from __future__ import annotations

import functools
import gc
import pickle
import subprocess
import sys
import time

import pytest
import torch
import torch._dynamo.utils
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import ADAM, Task, assert_same, mlp, run, start, state, values, without_compiler
from pyro_vd.compiled import ahead


class Process:
    """Stands for the other process, which is at work for as many steps as it is told."""

    steps = 3

    def __init__(self, command, **options):
        assert command[0] == sys.executable
        self.left, self.returncode, self.is_killed = self.steps, None, False
        self.work = pickle.load(options["stdin"])
        BEGUN.append(self)

    def poll(self):
        if self.returncode is None:
            self.left -= 1
            self.returncode = 0 if self.left < 0 else None
        return self.returncode

    def kill(self):
        self.is_killed, self.returncode = True, -9

    def wait(self):
        assert self.returncode is not None


BEGUN: list[Process] = []

linear = functools.partial(nn.Linear, 5, 3)


@pytest.fixture
def graphs(monkeypatch):
    BEGUN.clear()
    monkeypatch.setattr(ahead.subprocess, "Popen", Process)
    return without_compiler(monkeypatch)


def test_steps_are_eager_until_the_other_process_is_done(graphs):
    task, svi = start(layers=linear, warm=True)
    done = []
    for step in range(8):
        svi.step(*task.batches[step % 4])
        done.append(svi._compiled.done)
        assert len(graphs) == (1 if done[-1] else 0)
    # Step 1 makes the optimizer's state, in step 2 the process begins, steps 3 to 5 find it at work.
    assert done == [0, 0, 0, 0, 0, 1, 2, 3]
    assert len(BEGUN) == 1 and not BEGUN[0].is_killed


@pytest.mark.parametrize("options", [{}, pytest.param({"accumulate": 2}, marks=pytest.mark.slow)], ids=str)
def test_a_training_is_that_without_it(graphs, options):
    found = []
    for warm in (True, False):
        task, svi = start(layers=mlp, warm=warm, **options)
        losses = run(svi.step, task.batches, 12)
        found.append((state(task), torch.tensor(losses)))
        assert svi._compiled.done > 0
    assert_same(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)


def test_both_processes_have_the_same_graph(graphs):
    task, svi = start(layers=linear, warm=True)
    run(svi.step, task.batches, 8)
    graph, kinds, options, threads = BEGUN[0].work
    assert graph.code == graphs[0].code
    assert threads == torch.get_num_threads() and options["fallback_random"]
    inputs = [node for node in graphs[0].graph.nodes if node.op == "placeholder"]
    assert len(kinds) == len(inputs)


@pytest.mark.slow
def test_each_program_has_a_process_and_they_run_one_after_another(graphs):
    task = Task(sizes=(8, 8, 8, 3))  # a smaller last batch
    svi = vd.CompiledSVI(task.model, task.guide, ADAM, vd.TraceVD_ELBO(), warm=True, strict=True)
    for step in range(28):
        svi.step(*task.batches[step % 4])
        assert sum(process.returncode is None for process in BEGUN) <= 1
    assert len(BEGUN) == len(graphs) == 2


@pytest.mark.slow
def test_what_is_new_in_every_step_is_given_up_as_without_it(graphs, monkeypatch):
    monkeypatch.setattr(Process, "steps", 0)
    task, svi = start(layers=linear, warm=True, strict=False)
    with pytest.warns(UserWarning, match="number has a new value in every step"):
        for step in range(28):
            task.number = step
            svi.step(*task.batches[0])
    assert svi._programs.ended and len(BEGUN) == 8


@pytest.mark.parametrize("broken", ["graph", "process"])
def test_without_another_process_it_is_compiled_here(graphs, monkeypatch, broken):
    def fail(*_, **__):
        raise OSError("no processes")

    if broken == "graph":
        monkeypatch.setattr(ahead.pickle, "dumps", fail)
        monkeypatch.setattr(ahead.pickle, "dump", fail)
    else:
        monkeypatch.setattr(ahead.subprocess, "Popen", fail)
    task, svi = start(layers=linear, warm=True)
    run(svi.step, task.batches, 3)
    assert svi._compiled.done == 2 and len(graphs) == 1


def test_an_eager_step_while_it_compiles_leaves_nothing_of_the_recording(graphs):
    task, svi = start(layers=linear, warm=True)
    run(svi.step, task.batches, 2)
    found = values(), torch.get_rng_state()
    task, plain = start(layers=linear, warm=False)
    plain._programs.ended = True  # eager from the first step on
    run(plain.step, task.batches, 2)
    assert all(torch.equal(found[0][name], value) for name, value in values().items())
    assert torch.equal(found[1], torch.get_rng_state())


def test_the_process_ends_with_the_training(graphs, monkeypatch):
    monkeypatch.setattr(Process, "steps", 10_000)
    task, svi = start(layers=linear, warm=True)
    run(svi.step, task.batches, 3)
    assert not BEGUN[0].is_killed
    del task, svi
    gc.collect()
    assert BEGUN[0].is_killed


def test_warm_is_a_truth_value():
    with pytest.raises(TypeError, match="warm: expected True or False, got 'yes'"):
        start(warm="yes")


@pytest.mark.slow
def test_the_program_of_the_other_process_is_found_here(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = torch._dynamo.utils.counters["inductor"]
    found.clear()
    task, svi = start(layers=linear, warm=True)
    deadline = time.monotonic() + 300
    while not svi._compiled.done:
        assert time.monotonic() < deadline
        svi.step(*task.batches[0])
    assert found["fxgraph_cache_hit"] == 1 and not found["fxgraph_cache_miss"]
    assert all(process.returncode == 0 for process in svi._compiled._elsewhere._begun.values())
    assert isinstance(next(iter(svi._compiled._elsewhere._begun.values())), subprocess.Popen)
