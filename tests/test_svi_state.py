"""CompiledSVI keeps the state of the last good step: NaN, and what a user changes between steps."""

from __future__ import annotations

import copy
import functools
import math

import pyro
import pytest
import torch
from svi_runs import Task, assert_same, run, values, without_compiler
from torch import nn

import pyro_vd as vd

ADAM = functools.partial(torch.optim.Adam, lr=0.02)
NAN = math.nan


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    torch.set_default_dtype(torch.float64)
    return without_compiler(monkeypatch)


class Rooted(nn.Module):
    """Linear but for a term whose gradient to ``gain`` is NaN where an input is 0, and whose value is not."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.gain = nn.Linear(5, 3), nn.BatchNorm1d(5), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.linear(self.norm(x)) + (self.gain * x.abs()).sqrt().mean(-1, keepdim=True)


def start(optim=ADAM, layers=Rooted, **options):
    task = Task(layers)
    return task, vd.CompiledSVI(task.model, task.guide, optim, vd.TraceVD_ELBO(), **{"strict": True, **options})


def state(task):
    return values() | {name: buffer.clone() for name, buffer in task.named_buffers()}


def bad_batch(task, kind):
    x, y = task.batches[0]
    return (torch.full_like(x, NAN) if kind == "batch" else x.index_fill(0, torch.tensor([2]), 0.0)), y


@pytest.mark.parametrize("good_steps", [0, 1, 5])
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
                patch.setattr(svi, "_check_finite", lambda *step: None)  # as on a GPU, between looks at the flag
                svi.step(*bad_batch(task, "batch"))
                run(svi.step, task.batches, 3)
            assert_same(state(task), before, 0.0)
            with pytest.raises(ValueError, match="step 6: expected a finite loss and gradient"):
                svi.step(*task.batches[0])
            assert_same(state(task), before, 0.0)
        run(svi.step, task.batches, 5, seed=9)
        after.append(state(task))
    assert_same(after[0], after[1], 1e-9)


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


class _Counting(torch.optim.SGD):
    """Halves its learning rate by a count that is no tensor."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["times"] = group.get("times", 0) + 1
        return super().step(closure)


UNRECORDABLE = {
    "ClippedAdam": (pyro.optim.ClippedAdam({"lr": 0.02}), r"got ClippedAdam, which cannot be recorded"),
    "RAdam": (functools.partial(torch.optim.RAdam, lr=0.02), "got RAdam, which cannot be recorded"),
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


def test_optimizer_is_there_from_the_first_update_on():
    task, svi = start(layers=lambda: nn.Linear(5, 3), accumulate=2)
    svi.step(*task.batches[0])
    with pytest.raises(AttributeError, match="optimizer: expected a callable optim that has been called"):
        _ = svi.optimizer
    svi.step(*task.batches[0])
    assert isinstance(svi.optimizer, torch.optim.Adam)
