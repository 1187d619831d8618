"""CompiledSVI after a step that is not finite: the state of the last good one."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.svi_runs import assert_same, run, start, state, values, without_compiler

NAN = math.nan


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


def bad_batch(task, kind):
    x, y = task.batches[0]
    return (torch.full_like(x, NAN) if kind == "batch" else x.index_fill(0, torch.tensor([2]), 0.0)), y


@pytest.mark.parametrize(
    "good_steps", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_step_that_is_not_finite_changes_nothing(good_steps):
    after = []
    for is_bad in (True, False):
        task, svi = start()
        task.guide(*task.batches[0])
        run(svi.step, task.batches, good_steps)
        before = state(task)
        if is_bad:
            with pytest.raises(ValueError, match="finite"):
                svi.step(*bad_batch(task, "batch"))
            if good_steps > 1:  # eager steps leave buffers as SVI does
                assert_same(state(task), before, 0.0)
            for name, value in values().items():
                assert torch.equal(value, before[name]), name
            for buffer in task.buffers():
                assert torch.isfinite(buffer).all()
        run(svi.step, task.batches, 5, seed=9)
        after.append({name: value for name, value in state(task).items() if "running" not in name})
    assert_same(after[0], after[1], 1e-9)  # so the state of the optimizer was kept too


@pytest.mark.parametrize("good_steps", [0, 1, 5])
def test_where_only_a_gradient_is_not_finite_its_elements_stay(good_steps):
    task, svi = start()
    task.guide(*task.batches[0])
    run(svi.step, task.batches, good_steps)
    before = values()
    with pytest.raises(ValueError, match="expected a finite"):
        svi.step(*bad_batch(task, "gradient"))
    assert all(torch.isfinite(value).all() for value in state(task).values())
    after = values()
    stays = {name for name in after if name not in before or torch.equal(after[name], before[name])}
    assert stays == ({"net.gain"} if good_steps > 1 else set(after))  # an eager step refuses the whole
    assert all(map(math.isfinite, run(svi.step, task.batches, 4)))


def test_an_infinite_learning_rate_changes_nothing():
    task, svi = start()
    run(svi.step, task.batches, 4)
    before = state(task)
    svi.optimizer.param_groups[0]["lr"] = math.inf
    with pytest.raises(ValueError, match="expected a finite"):
        run(svi.step, task.batches, 3)
    assert_same(state(task), before, 0.0)
    svi.optimizer.param_groups[0]["lr"] = 0.02
    assert all(map(math.isfinite, run(svi.step, task.batches, 4)))


def test_steps_after_an_unseen_bad_one_change_nothing_until_it_is_raised(monkeypatch):
    after = []
    for is_bad in (True, False):
        task, svi = start()
        run(svi.step, task.batches, 5)
        if is_bad:
            before = state(task)
            with monkeypatch.context() as patch:
                patch.setattr(
                    svi._compiled, "_is_finite", lambda loss, step: True
                )  # as on a GPU, between looks at the flag
                svi.step(*bad_batch(task, "batch"))
                run(svi.step, task.batches, 3)
            assert_same(state(task), before, 0.0)
            with pytest.raises(ValueError, match="step 6: expected a finite loss and gradient"):
                svi.step(*task.batches[0])
            assert_same(state(task), before, 0.0)
        run(svi.step, task.batches, 5, seed=9)
        after.append(state(task))
    assert_same(after[0], after[1], 1e-9)


@pytest.mark.slow
def test_sums_of_gradients_survive_a_bad_step():
    after = []
    for is_bad in (True, False):
        task, svi = start(accumulate=3)
        run(svi.step, task.batches, 7)
        if is_bad:
            with pytest.raises(ValueError, match="finite"):
                svi.step(*bad_batch(task, "batch"))
        svi._steps = 7
        run(svi.step, task.batches, 5, seed=9)
        after.append(state(task))
    assert_same(after[0], after[1], 1e-9)
