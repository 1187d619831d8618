"""CompiledSVI and changes by a user between steps: they take effect, or are refused with the state kept."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import ADAM, assert_same, run, start, state, values, without_compiler


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


def test_the_state_of_the_optimizer_can_be_loaded(graphs):
    task, svi = start(layers=lambda: nn.Linear(5, 3))
    run(svi.step, task.batches, 5)
    saved, saved_optimizer = values(), copy.deepcopy(svi.optimizer.state_dict())
    run(svi.step, task.batches, 5, seed=9)
    expected = values()
    with torch.no_grad():
        for name, value in pyro.get_param_store()._params.items():
            value.copy_(saved[name])
    svi.optimizer.load_state_dict(saved_optimizer)
    run(svi.step, task.batches, 5, seed=9)
    assert_same(values(), expected, 1e-9)
    assert len(graphs) == 2  # one before and one after


@pytest.mark.parametrize("hand_written_guide", [False, True])
def test_a_loaded_parameter_store_is_followed_or_refused(hand_written_guide, tmp_path):
    if hand_written_guide:

        def model():
            pyro.sample(
                "y", pyro.distributions.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1), obs=torch.ones(3)
            )

        def step(svi):
            return svi.step()

        svi = vd.CompiledSVI(model, lambda: None, ADAM, vd.TraceVD_ELBO(), strict=True)
    else:
        task, svi = start(layers=lambda: nn.Linear(5, 3))

        def step(svi):
            return svi.step(*task.batches[0])

    for _ in range(4):
        step(svi)
    store = pyro.get_param_store()
    store.save(tmp_path / "store")
    saved = values()
    for _ in range(8):
        step(svi)
    store.load(tmp_path / "store")
    try:
        step(svi)
    except ValueError as error:
        assert "parameter" in str(error)
        assert_same(values(), saved, 0.0)
        return
    moved = max((value - saved[name]).abs().max().item() for name, value in values().items())
    assert 0 < moved < 0.05  # a step of Adam, from the values that were loaded


def test_a_cleared_parameter_store_is_followed_or_refused():
    def model():
        pyro.sample(
            "y", pyro.distributions.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1), obs=torch.ones(3)
        )

    svi = vd.CompiledSVI(model, lambda: None, ADAM, vd.TraceVD_ELBO(), strict=True)
    for _ in range(8):
        svi.step()
    pyro.clear_param_store()
    try:
        svi.step()
    except ValueError as error:
        assert "make a new CompiledSVI" in str(error)
    else:
        torch.testing.assert_close(pyro.param("loc").detach(), torch.full((3,), 0.02))


def test_parameters_added_to_a_module_are_refused():
    task, svi = start(layers=lambda: nn.Linear(5, 3))
    run(svi.step, task.batches, 4)
    before = values()
    task.bnn.net.extra = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"got new ones of shapes \[\(2,\)\].*make a new CompiledSVI"):
        svi.step(*task.batches[0])
    assert_same(values(), before, 0.0)


def test_a_parameter_added_by_the_model_is_refused():
    names = ["a"]

    def model():
        total = sum(pyro.param(name, torch.zeros(())) for name in names)
        pyro.sample("y", pyro.distributions.Normal(total, 1.0), obs=torch.ones(()))

    svi = vd.CompiledSVI(model, lambda: None, ADAM, vd.TraceVD_ELBO(), strict=True)
    svi.step()
    names.append("b")
    before = float(pyro.param("a").detach())
    with pytest.raises(ValueError, match=r"new ones \['b'\].*make a new CompiledSVI"):
        svi.step()
    assert float(pyro.param("a").detach()) == before


def test_another_dtype_is_refused():
    task, svi = start(layers=lambda: nn.Linear(5, 3))
    run(svi.step, task.batches, 4)
    task.float()
    before = values()
    with pytest.raises(
        ValueError, match=r"expected torch.float64 on cpu as in the first step, got torch.float32.*new Compiled"
    ):
        svi.step(*task.batches[0])
    assert_same(values(), before, 0.0)


@pytest.mark.parametrize("steps", [1, 4])
def test_set_learnable_after_the_first_step_is_refused_or_followed(steps):
    task, svi = start(layers=lambda: nn.Linear(5, 3))
    run(svi.step, task.batches, steps)
    task.guide.set_learnable("log_sigma2s", False)
    before = state(task)
    with pytest.raises(ValueError, match="expected the parameters of the first step.*make a new CompiledSVI"):
        svi.step(*task.batches[0])
    assert_same(state(task), before, 0.0)
    svi = vd.CompiledSVI(task.model, task.guide, ADAM, vd.TraceVD_ELBO(), strict=True)
    run(svi.step, task.batches, 4)
    assert torch.equal(state(task)["guide.log_sigma2s.net.weight"], before["guide.log_sigma2s.net.weight"])
