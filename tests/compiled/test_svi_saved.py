"""state_dict and load_state_dict of CompiledSVI: a training goes on bit for bit, whatever step it was saved after."""

from __future__ import annotations

import copy
import functools

import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import Task, values, without_compiler

OPTIMIZERS = {
    "Adam": lambda: functools.partial(torch.optim.Adam, lr=0.02),
    "SGD": lambda: functools.partial(torch.optim.SGD, lr=0.001),
    "momentum": lambda: functools.partial(torch.optim.SGD, lr=0.001, momentum=0.9),
    "pyro Adam": lambda: pyro.optim.Adam({"lr": 0.02}),
}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Programs whose results differ from the eager ones in the last digits, as compiled ones do."""
    without_compiler(monkeypatch)

    def compiled(graph, example, **options):
        def run(*inputs):
            return graph(*(t * (1 + 1e-6) if t.shape == (8, 5) else t for t in inputs))

        return run

    monkeypatch.setattr(torch._inductor, "compile", compiled)


def start(optim, seed, **options):
    task = Task(lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)))
    pyro.set_rng_seed(seed)
    task.guide(*task.batches[0])
    return task, vd.CompiledSVI(task.model, task.guide, optim, vd.TraceVD_ELBO(), strict=True, **options)


def steps(task, svi, first, last):
    for i in range(first, last):
        svi.step(*task.batches[i % 4])
    return values() | {name: buffer.clone() for name, buffer in task.named_buffers()}


FAST = [("Adam", 1, 1), ("Adam", 1, 2)]
ALL = [(name, after, accumulate) for name in OPTIMIZERS for after in (0, 1, 2, 5) for accumulate in (1, 2)]
ALL = [case for case in ALL if case[::2] != ("pyro Adam", 2)]


@pytest.mark.parametrize(
    ("name", "after", "accumulate"),
    FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FAST],
)
def test_a_training_goes_on_bit_for_bit(name, after, accumulate):
    task, svi = start(OPTIMIZERS[name](), 1, accumulate=accumulate)
    steps(task, svi, 0, after)
    state = svi.state_dict()  # a copy: later steps do not change it
    rest = copy.deepcopy([task.state_dict(), torch.get_rng_state()])
    expected = steps(task, svi, after, after + 3)

    task, svi = start(OPTIMIZERS[name](), 2, accumulate=accumulate)
    task.load_state_dict(rest[0])
    svi.load_state_dict(state)
    torch.set_rng_state(rest[1])
    found = steps(task, svi, after, after + 3)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert svi._steps == after + 3


def test_sums_of_gradients_for_an_optimizer_of_pyro_are_not_saved():
    task, svi = start(OPTIMIZERS["pyro Adam"](), 1, accumulate=2)
    steps(task, svi, 0, 1)
    with pytest.raises(ValueError, match="state_dict: expected accumulate=1 or an optimizer of torch.optim"):
        svi.state_dict()


def test_a_state_is_saved_and_loaded_with_weights_only(tmp_path):
    task, svi = start(OPTIMIZERS["Adam"](), 1)
    steps(task, svi, 0, 3)
    torch.save(svi.state_dict(), tmp_path / "state")
    _, other = start(OPTIMIZERS["Adam"](), 1)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other._steps == 3


def bad_states():
    task, svi = start(OPTIMIZERS["Adam"](), 1)
    steps(task, svi, 0, 3)
    good = svi.state_dict()
    renamed = copy.deepcopy(good)
    renamed["parameters"][0] = ("the guide.other", renamed["parameters"][0][1])
    reshaped = copy.deepcopy(good)
    reshaped["parameters"][0] = (reshaped["parameters"][0][0], (7, 7))
    swapped = copy.deepcopy(good)
    swapped["parameters"].reverse()
    return {
        "of an optimizer": (
            svi.optimizer.state_dict(),
            "expected what CompiledSVI.state_dict.. returned, got .*param_groups",
        ),
        "of a net": (task.state_dict(), "expected what CompiledSVI.state_dict.. returned"),
        "none": (None, "expected what CompiledSVI.state_dict.. returned, got NoneType"),
        "a part": ({k: v for k, v in good.items() if k != "steps"}, "expected what CompiledSVI.state_dict"),
        "version": (good | {"version": 9}, "expected version 1, got 9"),
        "accumulate": (good | {"accumulate": 4}, "expected one of accumulate=1, got accumulate=4"),
        "name": (renamed, r"with \['the guide.other'\] besides"),
        "shape": (reshaped, r"of shape \(3, 5\), got \(7, 7\)"),
        "order": (swapped, "expected the parameters in the order"),
        "optimizer": (
            good | {"optimizer": good["optimizer"] | {"kind": "RMSprop"}},
            "one of Adam, as optim makes, got one of RMSprop",
        ),
        "kind of optimizer": (
            good | {"optimizer": good["optimizer"] | {"is_pyro": True}},
            "got one of a pyro.optim optimizer",
        ),
    }


@pytest.mark.parametrize("taken", [0, 3])
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(taken):
    states = bad_states()
    task, svi = start(OPTIMIZERS["Adam"](), 1)
    steps(task, svi, 0, taken)
    for state, message in states.values():
        before, optimizer = values(), copy.deepcopy(svi._optimizer.saved())
        with pytest.raises(ValueError, match=message):
            svi.load_state_dict(state)
        assert all(torch.equal(values()[key], value) for key, value in before.items()) and svi._steps == taken
        assert str(svi._optimizer.saved()) == str(optimizer)
    noise = torch.get_rng_state()
    found = steps(task, svi, taken, taken + 3)
    task, svi = start(OPTIMIZERS["Adam"](), 1)
    steps(task, svi, 0, taken)
    torch.set_rng_state(noise)
    expected = steps(task, svi, taken, taken + 3)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_loss_and_grads_is_that_of_svi():
    found = []
    for kind in (vd.CompiledSVI, pyro.infer.SVI):
        task = Task(lambda: nn.Linear(5, 3))
        svi = kind(task.model, task.guide, pyro.optim.Adam({"lr": 0.02}), vd.TraceVD_ELBO())
        pyro.set_rng_seed(3)
        loss = svi.loss_and_grads(svi.model, svi.guide, *task.batches[0])
        found.append((loss, {name: value.grad.clone() for name, value in pyro.get_param_store()._params.items()}))
    assert found[0][0] == found[1][0] and isinstance(found[0][0], float)
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())
