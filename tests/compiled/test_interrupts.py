"""A step that is interrupted anywhere is taken wholly or not at all, and the next one is an undisturbed one."""

from __future__ import annotations

import functools
import random
import sys

import pyro
import pytest
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import Task, without_compiler

pytestmark = pytest.mark.slow

OPTIMIZERS = {
    "Adam": lambda: functools.partial(torch.optim.Adam, lr=0.02),
    "SGD": lambda: functools.partial(torch.optim.SGD, lr=0.001),
    "pyro momentum": lambda: pyro.optim.SGD({"lr": 0.001, "momentum": 0.9}),
}
OTHERS = {
    "RAdam": lambda: functools.partial(torch.optim.RAdam, lr=0.02),
    "decay": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.ASGD, "optim_args": {"lr": 0.001}, "gamma": 0.9}  # it takes this dict apart
    ),
}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


def normalised():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def everything(task, svi):
    """All that a step may change, as something to compare."""
    store = pyro.get_param_store()
    tensors = {f"store {name}": value for name, value in store._params.items()}
    tensors |= dict(task.named_parameters()) | dict(task.named_buffers())
    gradients = {f"{name}.grad": value.grad for name, value in tensors.items() if value.is_leaf}
    optimizer = svi._optimizer.saved()
    leaves, structure = torch.utils._pytree.tree_flatten((tensors, gradients, optimizer))
    values = [leaf.tolist() if torch.is_tensor(leaf) else leaf for leaf in leaves]
    groups = [{**group, "params": len(group["params"])} for group in svi._optimizer.groups()]
    rest = (svi._steps, svi.loss.kl_weight, is_validation_enabled(), len(_PYRO_STACK), task.training)
    return values, str(structure), groups, torch.get_rng_state().tolist(), rest, sorted(vars(task.guide))


class Interrupt:
    """Raises KeyboardInterrupt at the ``at``-th line of the package, of torch's optimizers or of Pyro."""

    def __init__(self, at=None):
        self.at, self.lines = at, 0

    def __enter__(self):
        sys.settrace(self._called)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _called(self, frame, event, arg):
        name = frame.f_globals.get("__name__", "")
        return self._line if name.startswith(("pyro_vd.", "torch.optim.", "pyro.optim", "pyro.nn")) else None

    def _line(self, frame, event, arg):
        # What puts everything back after an interrupt is not interrupted again by these tests.
        if event == "line" and frame.f_code.co_name not in ("restore", "restore_values"):
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


SLOW = pytest.mark.slow  # recording is traced line by line


@pytest.mark.parametrize(
    ("name", "steps", "accumulate"),
    [(name, steps, 1) for name in OPTIMIZERS for steps in (0, 5)]
    + [pytest.param(name, 1, 1, marks=SLOW) for name in OPTIMIZERS]
    + [(name, steps, 2) for name in ("pyro momentum", *OTHERS) for steps in (0, 1, 6)],
)
def test_an_interrupt_at_a_random_line_leaves_a_whole_number_of_steps(name, steps, accumulate):
    """Six points in each case, 108 in all: the first step, the one that compiles (1), a compiled one (5).

    Of two steps with one update: the first (0), the update (1), one that is compiled (6).
    """

    def start():
        task = Task(normalised)
        optim, elbo = (OPTIMIZERS | OTHERS)[name](), vd.TraceVD_ELBO()
        svi = vd.CompiledSVI(task.model, task.guide, optim, elbo, strict=True, accumulate=accumulate)
        pyro.set_rng_seed(7)
        for i in range(steps):
            svi.step(*task.batches[i % 4])
        return task, svi, task.batches[steps % 4]

    task, svi, batch = start()
    before = everything(task, svi)
    with Interrupt() as count:
        svi.step(*batch)
    after = everything(task, svi)
    assert svi._steps == steps + 1 and before != after
    # A step that is tried again has fewer lines: what its surroundings are is known by then.
    points = random.Random(steps).sample(range(1, count.lines // 2), 6)
    task, svi, batch = start()
    for at in sorted(points):
        with pytest.raises(KeyboardInterrupt) as caught, Interrupt(at):
            svi.step(*batch)
        complete = any("was complete" in note for note in getattr(caught.value, "__notes__", ()))
        assert everything(task, svi) == (after if complete else before), f"line {at} of {count.lines}"
        if complete:
            task, svi, batch = start()
    svi.step(*batch)
    assert everything(task, svi) == after  # the next step is an undisturbed one


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_optimizer_that_fails_half_way_leaves_no_half_a_step(error, steps):
    class Failing(torch.optim.Adam):
        fail = False

        def step(self, closure=None):
            super().step(closure)
            if Failing.fail:
                raise error("after the update")

    found = []
    for fails in (True, False):
        Failing.fail = False
        task = Task(normalised)
        svi = vd.CompiledSVI(task.model, task.guide, functools.partial(Failing, lr=0.02), vd.TraceVD_ELBO())
        svi._programs.ended = steps == 4  # eager throughout
        pyro.set_rng_seed(7)
        for i in range(steps):
            svi.step(*task.batches[i])
        if fails:
            before, Failing.fail = everything(task, svi), True
            with pytest.raises((error, ValueError)):
                svi.step(*task.batches[steps % 4])
            assert everything(task, svi) == before
            Failing.fail = False
        svi.step(*task.batches[steps % 4])
        found.append(everything(task, svi))
    assert found[0] == found[1]


def test_a_compilation_that_is_interrupted_again_and_again_is_tried_again(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    task = Task(normalised)
    svi = vd.CompiledSVI(task.model, task.guide, OPTIMIZERS["Adam"](), vd.TraceVD_ELBO(), strict=True)
    svi.step(*task.batches[0])
    before = everything(task, svi)
    with monkeypatch.context() as patch:
        patch.setattr(torch._inductor, "compile", interrupted)
        for _ in range(6):
            with pytest.raises(KeyboardInterrupt):
                svi.step(*task.batches[1])
    assert everything(task, svi) == before
    svi.step(*task.batches[1])
    assert len(svi._programs) == 1


def test_an_interrupted_first_call_leaves_no_half_made_guide():
    calls = []

    def interrupted(net, inputs):
        calls.append(1)
        if len(calls) == 2:  # the guide has seen the model, the model has not seen the guide
            raise KeyboardInterrupt

    task = Task(normalised)
    handle = task.bnn.net.register_forward_pre_hook(interrupted)
    svi = vd.CompiledSVI(task.model, task.guide, OPTIMIZERS["Adam"](), vd.TraceVD_ELBO())
    before = everything(task, svi)
    with pytest.raises(KeyboardInterrupt):
        svi.step(*task.batches[0])
    assert everything(task, svi) == before
    handle.remove()
    svi.step(*task.batches[0])
    assert svi._steps == 1


@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_learning_rate_that_is_not_finite_changes_nothing(rate, name, steps):
    task = Task(normalised)
    optim = OPTIMIZERS[name]()
    if steps == 0:
        optim = functools.partial(torch.optim.SGD, lr=rate)
        if rate != rate:
            return  # torch refuses it
    svi = vd.CompiledSVI(task.model, task.guide, optim, vd.TraceVD_ELBO(), strict=True)
    pyro.set_rng_seed(7)
    for i in range(steps):
        svi.step(*task.batches[i % 4])
    for group in svi._optimizer.groups():
        group["lr"] = rate
    before = everything(task, svi)
    with pytest.raises(ValueError, match="expected a finite learning rate, got"):
        svi.step(*task.batches[0])
    assert str(everything(task, svi)) == str(before)


@pytest.mark.parametrize("name", ["pyro momentum", *OTHERS])
@pytest.mark.parametrize("steps", [2, 3, 6])
def test_a_learning_rate_that_is_not_finite_changes_nothing_where_gradients_are_added(name, steps):
    task, optim = Task(normalised), (OPTIMIZERS | OTHERS)[name]()
    svi = vd.CompiledSVI(task.model, task.guide, optim, vd.TraceVD_ELBO(), strict=True, accumulate=2)
    for i in range(steps):
        svi.step(*task.batches[i % 4])
    before = str(everything(task, svi))
    rates = [group["lr"] for group in svi._optimizer.groups()]
    for group in svi._optimizer.groups():
        group["lr"] = float("inf")
    with pytest.raises(ValueError, match="expected a finite learning rate, got"):
        svi.step(*task.batches[0])
    for group, rate in zip(svi._optimizer.groups(), rates, strict=True):
        group["lr"] = rate
    assert str(everything(task, svi)) == before


@pytest.mark.parametrize("of_pyro", [False, True])
def test_a_rate_that_is_infinite_from_the_start_keeps_the_sum_of_gradients(of_pyro):
    task, rate = Task(normalised), float("inf")
    optim = pyro.optim.SGD({"lr": rate}) if of_pyro else functools.partial(torch.optim.SGD, lr=rate)
    svi = vd.CompiledSVI(task.model, task.guide, optim, vd.TraceVD_ELBO(), accumulate=2)
    svi.step(*task.batches[0])
    before = str(everything(task, svi))
    with pytest.raises(ValueError, match="expected a finite learning rate, got"):
        svi.step(*task.batches[1])
    assert str(everything(task, svi)) == before
