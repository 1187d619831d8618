"""CompiledSVI refuses optimizers and options it cannot train with, each error by its text."""

from __future__ import annotations

import functools
import math

import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import ADAM, Task, assert_same, run, start, values, without_compiler

NAN = math.nan


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


class _Counting(torch.optim.SGD):
    """Halves its learning rate by a count that is no tensor."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["times"] = group.get("times", 0) + 1
        return super().step(closure)


UNRECORDABLE = {
    "ClippedAdam": (pyro.optim.ClippedAdam({"lr": 0.02}), r"got ClippedAdam, which cannot be recorded"),
    "counting": (functools.partial(_Counting, lr=0.02), "got _Counting, which cannot be recorded .changes its options"),
}


@pytest.mark.parametrize("name", UNRECORDABLE)
@pytest.mark.parametrize("strict", [False, True])
def test_an_optimizer_that_cannot_be_recorded_is_refused(name, strict):
    optim, message = UNRECORDABLE[name]
    task, svi = start(optim, lambda: nn.Linear(5, 3), strict=strict)
    before = {}

    def step(*args):
        before.clear()
        before.update(values())
        return svi.step(*args)

    with pytest.raises(ValueError, match=message):
        run(step, task.batches, 3)
    if before:
        assert_same(values(), before, 0.0)
    # No gradient is left over that another optimizer would add to its first.
    assert all(value.grad is None for value in pyro.get_param_store()._params.values())


@pytest.mark.parametrize(
    ("optim", "options", "error", "message"),
    [
        (
            torch.optim.SGD([torch.ones(1)], lr=0.1),
            {},
            TypeError,
            "optim: expected a pyro.optim optimizer or a callable.*SGD",
        ),
        ({"lr": 0.1}, {}, TypeError, "optim: expected a pyro.optim optimizer or a callable.* got dict"),
        (
            pyro.optim.Adam({}),
            {"clip_norm": 1.0},
            ValueError,
            r"pyro.optim.Adam\(..., clip_args=\{'clip_norm': 1.0\}\)",
        ),
        (ADAM, {"clip_norm": 0.0}, ValueError, "clip_norm: expected a number > 0 or None, got 0.0"),
        (ADAM, {"clip_norm": NAN}, ValueError, "clip_norm: expected a number > 0 or None, got nan"),
        (ADAM, {"accumulate": 0}, ValueError, "accumulate: expected a whole number >= 1, got 0"),
        (ADAM, {"accumulate": 2.0}, ValueError, "accumulate: expected a whole number >= 1, got 2.0"),
    ],
)
def test_options_are_checked_at_once(optim, options, error, message):
    task = Task(lambda: nn.Linear(5, 3))
    with pytest.raises(error, match=message):
        vd.CompiledSVI(task.model, task.guide, optim, vd.TraceVD_ELBO(), **options)


def test_lbfgs_is_refused_by_the_first_step():
    task, svi = start(functools.partial(torch.optim.LBFGS, lr=0.1), lambda: nn.Linear(5, 3))
    with pytest.raises(ValueError, match="got LBFGS, which evaluates the loss itself"):
        svi.step(*task.batches[0])


def test_loss_is_an_elbo():
    with pytest.raises(TypeError, match="loss: expected an ELBO with differentiable_loss.*got function"):
        vd.CompiledSVI(lambda: None, lambda: None, ADAM, lambda model, guide: 0.0)


def test_a_callable_that_returns_no_optimizer():
    task, svi = start(lambda parameters: parameters, lambda: nn.Linear(5, 3))
    with pytest.raises(TypeError, match="expected the callable to return a torch.optim.Optimizer, got list"):
        svi.step(*task.batches[0])


def test_optimizer_is_there_as_soon_as_the_guide_has_parameters():
    task, svi = start(layers=lambda: nn.Linear(5, 3))
    task.guide(*task.batches[0])
    made = svi.optimizer
    assert isinstance(made, torch.optim.Adam) and made.param_groups[0]["lr"] == 0.02
    trained = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    assert trained == {id(p) for p in (*task.guide.parameters(), task.bnn.net.bias)}
    before = values()
    run(svi.step, task.batches, 3)
    assert svi.optimizer is made and all(not torch.equal(values()[name], value) for name, value in before.items())


def test_no_optimizer_before_a_guide_has_parameters():
    svi = vd.CompiledSVI(lambda: None, lambda: pyro.param("loc", torch.zeros(2)), ADAM, vd.TraceVD_ELBO())
    with pytest.raises(AttributeError, match="optimizer: expected a guide with parameters.*take a step before"):
        _ = svi.optimizer
    svi = vd.CompiledSVI(lambda: None, lambda: None, pyro.optim.Adam({"lr": 0.1}), vd.TraceVD_ELBO())
    with pytest.raises(AttributeError, match="optimizer: expected a callable optim, got one of pyro.optim"):
        _ = svi.optimizer


def test_an_optimizer_made_too_early_is_refused():
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self):
            loc = pyro.param("loc", self.loc)
            scale = pyro.param("scale", torch.ones(2))
            pyro.sample("z", pyro.distributions.Normal(loc, scale).to_event(1))

    def model():
        pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = Guide()
    svi = vd.CompiledSVI(model, guide, ADAM, vd.TraceVD_ELBO())
    _ = svi.optimizer
    with pytest.raises(
        ValueError, match=r"without \['scale'\]; call guide\(\*args\) once before you ask for .optimizer"
    ):
        svi.step()
    assert not guide.loc.any() and not len(pyro.get_param_store())
