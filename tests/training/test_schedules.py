"""Schedules of the weight of the KL: values, arguments, and the same numbers when JAX or torch traces the step."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import pyro_vd as vd
from pyro_vd.training import constant, cyclic, linear_warm_up

SCHEDULES = {
    "steps": linear_warm_up(3, 9),
    "from the start": linear_warm_up(0, 7),
    "shares": linear_warm_up(0.1, 0.6, num_steps=20),
    "whole run": linear_warm_up(0, 1, num_steps=20),
    "cycles": cyclic(20),
    "three cycles": cyclic(20, 3, 0.8),
    "one cycle": cyclic(20, 1, 1.0),
    "constant": constant(0.3),
}


def warm_up(step, begin, end):
    return 0.0 if step < begin else 1.0 if step >= end else (step - begin) / (end - begin)


def cycles(step, num_steps, num_cycles, rise):
    if step >= num_steps:
        return 1.0
    length = num_steps / num_cycles
    return min(1.0, (step / length - step * num_cycles // num_steps) / rise)


EXPECTED = {
    "steps": lambda step: warm_up(step, 3, 9),
    "from the start": lambda step: warm_up(step, 0, 7),
    "shares": lambda step: warm_up(step, 2, 12),
    "whole run": lambda step: warm_up(step, 0, 20),
    "cycles": lambda step: cycles(step, 20, 4, 0.5),
    "three cycles": lambda step: cycles(step, 20, 3, 0.8),
    "one cycle": lambda step: cycles(step, 20, 1, 1.0),
    "constant": lambda step: 0.3,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_of_every_step(name):
    schedule = SCHEDULES[name]
    weights = [schedule(step) for step in range(45)]
    assert all(type(weight) is float for weight in weights)
    assert weights == pytest.approx([EXPECTED[name](step) for step in range(45)], abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [np.arange(45), np.arange(45, dtype=np.uint8), torch.arange(45)], ids=str)
def test_arrays_of_steps(name, steps):
    expected = [EXPECTED[name](step) for step in range(45)]
    assert [float(weight) for weight in SCHEDULES[name](steps)] == pytest.approx(expected, abs=1e-6)
    assert float(SCHEDULES[name](steps[11])) == pytest.approx(expected[11], abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_that_jax_traces(name, x64):
    jax = pytest.importorskip("jax")
    expected = [EXPECTED[name](step) for step in range(45)]
    schedule = SCHEDULES[name]
    for dtype in ("int32", "uint32", "int64"):
        steps = jax.numpy.arange(45, dtype=dtype)
        _, scanned = jax.lax.scan(lambda carry, step: (carry, schedule(step)), 0, steps)
        np.testing.assert_allclose(scanned, expected, atol=1e-6)
        compiled = jax.jit(schedule)
        np.testing.assert_allclose(
            [compiled(steps[i]) for i in (0, 11, 44)], [expected[i] for i in (0, 11, 44)], atol=1e-6
        )


def test_shares_of_a_run():
    assert linear_warm_up(0.1, 0.5, num_steps=1)(0.3) == pytest.approx(0.5)
    assert linear_warm_up(0.1, 0.5, num_steps=1)(1.0) == cyclic(1)(1.0) == 1.0
    assert cyclic(1)(0.25) == 0.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_values(name):
    schedule = SCHEDULES[name]
    assert (
        pickle.loads(pickle.dumps(schedule)) == schedule and len({schedule, pickle.loads(pickle.dumps(schedule))}) == 1
    )
    with pytest.raises(AttributeError):
        schedule.num_steps = 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_warm_up(0.1, 0.5), "whole numbers of steps .* got begin=0.1 and end=0.5; .* num_steps="),
        (lambda: linear_warm_up(0, 1), "whole numbers of steps with an end > 1"),
        (lambda: linear_warm_up(5, 5), "end: expected a number > begin=5, got 5; write constant"),
        (lambda: linear_warm_up(7, 5), "end: expected a number > begin=7"),
        (lambda: linear_warm_up(0.5, 1.5, num_steps=9), "end: .* <= 1 .* got 1.5"),
        (lambda: linear_warm_up(100, 300, num_steps=1000), "begin: .* share of the run"),
        (lambda: linear_warm_up(-1, 5), "begin: .*>= 0, got -1"),
        (lambda: linear_warm_up(0, float("nan")), "end: .* got nan"),
        (lambda: linear_warm_up(0, True), "end: .* got True"),
        (lambda: linear_warm_up(0, 0.5, num_steps=0), "num_steps: .* >= 1, got 0"),
        (lambda: linear_warm_up(0, 0.5, num_steps=9.5), "num_steps: expected a whole number"),
        (lambda: cyclic(0), "num_steps: .* got 0"),
        (lambda: cyclic(3, 4), "num_cycles: expected at most the 3 steps of the run, got 4"),
        (lambda: cyclic(9, 0), "num_cycles: .* got 0"),
        (lambda: cyclic(9, 2, 0), "rise: .* got 0"),
        (lambda: cyclic(9, 2, 1.5), "rise: .* got 1.5"),
        (lambda: constant(-1), "value: .* got -1"),
        (lambda: constant(float("inf")), "value: .* got inf"),
        (lambda: cyclic(9)(-1), "step: .* got -1"),
        (lambda: linear_warm_up(0, 9)("3"), "step: expected a whole number .* got '3'"),
        (lambda: constant()(True), "step: .* got True"),
        (lambda: constant()(None), "step: .* got None"),
        (lambda: cyclic(9)(np.bool_(True)), "step: expected a whole number"),
        (lambda: cyclic(9)(torch.tensor([True])), "step: expected a whole number"),
        (lambda: cyclic(9)(float("nan")), "step: .* got nan"),
        (lambda: cyclic(9)([1, 2]), "step: "),
    ],
)
def test_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_weight_is_one_for_the_elbo():
    elbo = vd.TraceVD_ELBO()
    for schedule in SCHEDULES.values():
        for step in (0, 5, torch.tensor(5), np.int64(7)):
            elbo.kl_weight = schedule(step)
