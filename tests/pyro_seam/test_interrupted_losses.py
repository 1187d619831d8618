"""pyro.infer.SVI with the library's loss: an interrupt before the optimizer's step leaves everything as before it.

The step of the optimizer, and what ``SVI`` does around it, is Pyro's. ``pyro_vd.CompiledSVI`` is all or nothing there
too.
"""

from __future__ import annotations

import random
import sys

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import Task

TRACED = ("pyro_vd.", "pyro.", "torch.nn.", "torch.distributions.", "torch.autograd.", __name__)
UNDOING = {"undo", "restore_entry", "handlers_kept"}  # what puts back is not interrupted again
# Where an interrupt costs most: between a change and the note of it.
CRITICAL = {"__enter__", "__exit__", "allocate", "free", "loss_and_grads", "gradients_added", "backward"}


class Interrupted:
    """``loss_and_grads`` with a KeyboardInterrupt when it first comes to the place ``at``.

    Attributes:
        places: file, line and function of every line that the last call has run.
    """

    def __init__(self, inner):
        self.inner, self.at, self.places = inner, None, {}

    def __call__(self, *args):
        self.places = {}
        sys.settrace(self._called)
        try:
            return self.inner(*args)
        finally:
            sys.settrace(None)

    def _called(self, frame, event, arg):
        is_traced = frame.f_globals.get("__name__", "").startswith(TRACED)
        return self._line if is_traced and frame.f_code.co_name not in UNDOING else None

    def _line(self, frame, event, arg):
        place = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        is_new = place not in self.places or place == self.at
        if event == "line" and is_new and not _is_within_del(frame):
            self.places[place] = None
            if place == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line

    def some(self, number):
        """Places in the order in which they came: those that are critical, and ``number`` others."""
        others = [place for place in self.places if place[2] not in CRITICAL]
        chosen = set(random.Random(0).sample(others, number))
        return [place for place in self.places if place[2] in CRITICAL or place in chosen]


def _is_within_del(frame):
    """Python reports an exception there, and goes on."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def normalised():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def start(guide, elbo):
    task = Task(normalised)
    svi = SVI(task.model, guide(task.guide), pyro.optim.Adam({"lr": 0.02}), elbo)
    svi.loss_and_grads = Interrupted(svi.loss_and_grads)
    task.guide(*task.batches[0])  # parameters made in the first call are there
    pyro.set_rng_seed(7)
    return task, svi


def values(svi):
    """Parameters, their gradients, and the state of the optimizer."""
    found = {}
    for name, value in pyro.get_param_store()._params.items():
        found[name] = value.detach().clone()
        found[f"{name}.grad"] = torch.zeros_like(value) if value.grad is None else value.grad.clone()
        state = svi.optim.optim_objs[value].state[value] if value in svi.optim.optim_objs else {}
        found |= {f"{name} {key}": entry.clone() for key, entry in state.items()}
    return found


def net_of(task):
    owners = [(name, sorted(vars(module)), list(module._parameters)) for name, module in task.bnn.net.named_modules()]
    return owners, [type(parameter) for parameter in task.bnn.net.parameters()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def places_of(guide, elbo, steps, number):
    """Of the step after ``steps`` others: those that it comes to when it is tried again as well."""
    task, svi = start(guide, elbo)
    for i in range(steps + 1):
        svi.step(*task.batches[i % 4])
    first = svi.loss_and_grads.places
    svi.step(*task.batches[3])
    svi.loss_and_grads.places = {place: None for place in svi.loss_and_grads.places if place in first}
    return svi.loss_and_grads.some(number)


@pytest.mark.slow
@pytest.mark.parametrize("elbo", [vd.TraceVD_ELBO(), vd.TraceVD_ELBO(num_particles=2)], ids=["1", "2 particles"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_step_after_many_interrupts_is_an_undisturbed_one(steps, elbo):
    places = places_of(lambda guide: guide, elbo, steps, 30)
    assert len(places) > 50
    ends = []
    for interrupts in ([], places):
        task, svi = start(lambda guide: guide, elbo)
        for i in range(steps):
            svi.step(*task.batches[i])
        before, buffers, net = values(svi), [b.clone() for b in task.buffers()], net_of(task)
        noise = torch.get_rng_state()
        for svi.loss_and_grads.at in interrupts:
            with pytest.raises(KeyboardInterrupt):
                svi.step(*task.batches[3])
            torch.set_rng_state(noise)
            at = svi.loss_and_grads.at
            assert same(values(svi), before) and net_of(task) == net, at
            assert not _PYRO_STACK and not any(_DIM_ALLOCATOR._stack), at  # no handler or plate is left open
            assert all(torch.equal(now, then) for now, then in zip(task.buffers(), buffers, strict=True)), at
        svi.loss_and_grads.at = None
        svi.step(*task.batches[3])
        ends.append(values(svi) | {name: buffer.clone() for name, buffer in task.named_buffers()})
    assert same(*ends)


@pytest.mark.slow
def test_an_interrupt_under_a_loss_of_pyro_leaves_parameters_optimizer_and_net():
    """Buffers, gradients, and what is open, are not: a loss of Pyro runs the model outside of ``lrt``."""
    places = places_of(vd.lrt, TraceMeanField_ELBO(), 3, 30)
    places = [place for place in places if "poutine" not in place[0] and place[2] != "__exit__"]
    task, svi = start(vd.lrt, TraceMeanField_ELBO())
    for i in range(3):
        svi.step(*task.batches[i])
    before = {name: value for name, value in values(svi).items() if not name.endswith(".grad")}
    net = net_of(task)
    for svi.loss_and_grads.at in places:
        with pytest.raises(KeyboardInterrupt):
            svi.step(*task.batches[3])
        del _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:]
        task.guide._pyro_context.active = 0
        torch.set_grad_enabled(True)
        assert same(before, {name: value for name, value in values(svi).items() if name in before})
        assert net_of(task) == net
    svi.loss_and_grads.at = None
    assert svi.step(*task.batches[3]) > 0
