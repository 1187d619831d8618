"""CompiledSVI where there is no program: one warning that says why, and steps that are eager and right."""

from __future__ import annotations

import gc
import subprocess
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI

import pyro_vd as vd
from helpers.svi_runs import Task, assert_same, run, values, without_compiler
from pyro_vd.compiled import cache

BATCHES = [(x.double(), y) for x, y in Task().batches]


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


def regression(shift, guide_scale=0.1):
    """A model of one slope, whose mean is shifted by ``shift(x)``, and its guide."""

    def model(x, *rest):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slope + shift(x), 1.0), obs=x.sum(-1))

    def guide(x, *rest):
        loc = pyro.param("loc", torch.zeros(5))
        pyro.sample("slope", dist.Normal(loc, guide_scale).to_event(1))

    return model, guide


def steps(kind, shift, number=10, batches=None, **options):
    """Losses and parameters after as many steps; ``shift`` is made anew."""
    pyro.clear_param_store()
    np.random.seed(0)
    svi = kind(*regression(shift()), pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO(), **options)
    return run(svi.step, batches or [b[:1] for b in BATCHES], number), values(), svi


def expect_eager(shift, reason, number=10, batches=None):
    """One warning with ``reason``, the steps of SVI; under ``strict`` an error, and nothing has changed."""
    losses, expected, _ = steps(SVI, shift, number, batches)
    with pytest.warns(UserWarning, match="expected a step that can be compiled") as caught:
        found, parameters, svi = steps(vd.CompiledSVI, shift, number, batches)
    assert len(caught) == 1
    assert reason in str(caught[0].message) and "It is eager from here on" in str(caught[0].message)
    assert found == pytest.approx(losses, rel=1e-9)
    assert_same(parameters, expected, 1e-9)
    return svi


def expect_strict_error(shift, reason, number=10, batches=None):
    pyro.clear_param_store()
    np.random.seed(0)
    svi = vd.CompiledSVI(*regression(shift()), pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO(), strict=True)
    before = {}

    def step(*args):
        before.update(values())
        return svi.step(*args)

    with pytest.raises(ValueError, match="step with pyro.infer.SVI, or write strict=False to go on eagerly") as caught:
        run(step, batches or [b[:1] for b in BATCHES], number)
    assert reason in str(caught.value)
    assert_same(values(), before, 0.0)


def branching():
    return lambda x: 1.0 if x.sum() > 0 else -1.0


def reading():
    return lambda x: 1.0 if x.mean().item() > 0 else -1.0


def with_numpy():
    return lambda x: np.random.normal()


@pytest.mark.parametrize("shift", [branching, reading], ids=lambda shift: shift.__name__)
def test_models_that_cannot_be_recorded(shift):
    expect_eager(shift, "DataDependent")
    expect_strict_error(shift, "DataDependent")


def test_random_numbers_from_elsewhere():
    reason = "the compiled step is not the eager one with the same noise"
    with pytest.warns(UserWarning, match=reason):
        losses, *_ = steps(vd.CompiledSVI, with_numpy)
    assert len(set(losses[1::4])) > 1  # a recorded number would be the same in every step


def test_strict_changes_nothing_where_a_program_does_not_agree():
    expect_strict_error(with_numpy, "the compiled step is not the eager one with the same noise")


@pytest.mark.parametrize("change", [3, 6, 11])
@pytest.mark.parametrize("kind", ["number", "structure"])
def test_what_no_key_holds_is_noticed_at_a_power_of_two(kind, change):
    far = [False] * 20_000  # too long for the key

    def shift(x):
        if not far[-1]:
            return 0.0
        if kind == "structure":
            pyro.sample("extra", dist.Normal(7.0, 1.0), obs=torch.zeros(8))
        return 5.0

    svi = vd.CompiledSVI(*regression(shift), pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO())
    noticed = []
    pyro.set_rng_seed(3)
    for taken in range(20):
        far[-1] = taken >= change
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = svi.step(BATCHES[0][0])
        noticed += [(taken, str(warning.message)) for warning in caught]
    ((step, message),) = noticed
    assert step == next(2**k for k in range(1, 6) if 2**k >= change)
    assert "the model reads something that has changed" in message
    assert loss > 50  # the shift of 5 on 8 examples: 100 nats


def test_a_value_that_is_new_in_every_step_is_named():
    taken = 0

    def shift(x):
        return 0.01 * taken

    svi = vd.CompiledSVI(*regression(shift), pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO())
    with pytest.warns(UserWarning, match="'taken' in the closure of .*shift has a new value in every step") as caught:
        for taken in range(10):  # noqa: B007, shift reads it
            svi.step(BATCHES[0][0])
    assert len(caught) == 1 and caught[0].filename == __file__


def test_handlers_of_the_caller():
    class Scaled(SVI):
        def step(self, *args, **kwargs):
            with poutine.scale(scale=3.0):
                return super().step(*args, **kwargs)

    class ScaledCompiled(vd.CompiledSVI):
        def step(self, *args, **kwargs):
            with poutine.scale(scale=3.0):
                return super().step(*args, **kwargs)

    losses, expected, _ = steps(Scaled, lambda: lambda x: 0.0)
    with pytest.warns(UserWarning, match="the step runs under effect handlers of the caller"):
        found, parameters, _ = steps(ScaledCompiled, lambda: lambda x: 0.0)
    assert found == pytest.approx(losses, rel=1e-9)
    assert_same(parameters, expected, 1e-9)


def test_an_argument_that_is_not_hashable():
    batches = [(b[0], {1, 2}) for b in BATCHES]
    expect_eager(lambda: lambda x: 0.0, "an argument is neither a tensor nor hashable", batches=batches)
    expect_strict_error(lambda: lambda x: 0.0, "an argument is neither a tensor nor hashable", batches=batches)


@pytest.mark.parametrize(
    "error",
    [subprocess.CalledProcessError(1, ["g++"]), RuntimeError("no C++ compiler"), FileNotFoundError("g++")],
    ids=repr,
)
def test_a_machine_without_a_compiler(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(torch._inductor, "compile", fail)
    expect_eager(lambda: lambda x: 0.0, type(error).__name__)
    expect_strict_error(lambda: lambda x: 0.0, type(error).__name__)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_not_looked_for_while_a_program_is_compiled_and_as_before_afterwards(monkeypatch, enabled):
    during = []

    def fail(*args, **options):
        during.append(gc.isenabled())
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    try:
        if not enabled:
            gc.disable()
        expect_eager(lambda: lambda x: 0.0, "no C++ compiler")
        assert during == [False] and gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_program_that_is_wrong_is_not_used(monkeypatch):
    def scaled(graph, example, **options):
        return lambda *flat: [1.01 * output for output in graph(*flat)]

    monkeypatch.setattr(torch._inductor, "compile", scaled)
    expect_eager(lambda: lambda x: 0.0, "the compiled step is not the eager one with the same noise")


def test_a_program_whose_update_is_wrong_is_not_used(monkeypatch):
    def moved(graph, example, **options):
        def run_graph(*flat):
            before = [tensor.clone() for tensor in flat]
            outputs = graph(*flat)
            for tensor, old in zip(flat, before, strict=True):
                if tensor.is_floating_point():
                    tensor.add_(0.1 * (tensor - old))
            return outputs

        return run_graph

    monkeypatch.setattr(torch._inductor, "compile", moved)
    expect_eager(lambda: lambda x: 0.0, "the compiled step is not the eager one with the same noise")


def test_too_many_programs(monkeypatch, graphs):
    monkeypatch.setattr(cache, "MAX_PROGRAMS", 2)
    batches = [(torch.ones(rows, 5),) for rows in (1, 2, 3, 4)]
    expect_eager(lambda: lambda x: 0.0, "it has been compiled 2 times", batches=batches)
    assert len(graphs) == 2
    expect_strict_error(lambda: lambda x: 0.0, "it has been compiled 2 times", batches=batches)


def test_a_program_that_fails_when_it_is_run(monkeypatch):
    def compiled(graph, example, **options):
        def run(*inputs):
            raise RuntimeError("no such operation on this machine")

        return run

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    expect_eager(lambda: lambda x: x.sum(-1), "RuntimeError: no such operation on this machine")


def test_an_option_that_inductor_does_not_have_is_left_out(monkeypatch):
    given = []

    def compiled(graph, example, options):
        given.append(options)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["fallback_random", "max_autotune"])
    task = Task()
    run(vd.CompiledSVI(task.model, task.guide, pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO()).step, task.batches, 3)
    assert given == [{"fallback_random": True}]
