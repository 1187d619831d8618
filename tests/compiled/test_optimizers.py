"""StepOptimizer: what a recording changes in an optimizer is put back, whatever happens."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch

from pyro_vd.compiled.optimizers import StepOptimizer
from pyro_vd.compiled.walk import surroundings_of

ADAM = functools.partial(torch.optim.Adam, lr=0.1, foreach=True)


def stepped(optim):
    """After one step on a parameter of two elements."""
    parameter = torch.ones(2, requires_grad=True)
    parameter.grad = torch.tensor([1.0, -1.0])
    optimizer = StepOptimizer(optim)
    optimizer.update([parameter])
    return parameter, optimizer


def snapshot(optimizer):
    (one,) = optimizer.optimizers
    groups = [dict(group, params=list(map(id, group["params"]))) for group in one.param_groups]
    states = [{k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()} for state in one.state.values()]
    return groups, states


@pytest.mark.parametrize(
    "optim",
    [lambda: ADAM, lambda: pyro.optim.SGD({"lr": 0.1, "momentum": 0.9})],
    ids=["Adam", "pyro SGD"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_recorded_restores_everything(optim, fails):
    _, optimizer = stepped(optim())
    optimizer.rates()
    before = snapshot(optimizer)
    try:
        with optimizer.recorded():
            group = optimizer.optimizers[0].param_groups[0]
            assert group["differentiable"] and not group["foreach"] and torch.is_tensor(group["lr"])
            for state in optimizer.optimizers[0].state.values():
                state["another"] = torch.zeros(2)
            if fails:
                raise KeyError("while recording")
    except KeyError:
        assert fails
    torch.testing.assert_close(snapshot(optimizer), before, rtol=0.0, atol=0.0)


def test_a_number_that_a_step_changes_is_named():
    _, optimizer = stepped(functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    optimizer.rates()
    with pytest.raises(ValueError, match=r"changes its options \['dampening'\] in every step"):
        with optimizer.recorded():
            optimizer.optimizers[0].param_groups[0]["dampening"] = 0.5
    assert optimizer.optimizers[0].param_groups[0]["dampening"] == 0
    (state,) = optimizer.optimizers[0].state.values()
    state["times"] = 1
    with pytest.raises(ValueError, match=r"counts \['times'\] in Python numbers"):
        with optimizer.recorded():
            state["times"] = 2
    assert state["times"] == 1


def test_rates_follow_the_groups_in_the_same_tensor():
    _, optimizer = stepped(functools.partial(torch.optim.SGD, lr=0.1))
    (rate,) = optimizer.rates()
    assert rate.dtype == torch.float64 and rate == 0.1
    optimizer.optimizers[0].param_groups[0]["lr"] = 0.02
    assert optimizer.rates()[0] is rate and rate == 0.02


def test_constants_are_all_options_but_the_rate():
    _, optimizer = stepped(functools.partial(torch.optim.SGD, lr=0.1))
    (group,) = optimizer.groups()
    left_out = ("params", "lr", "initial_lr")
    before = surroundings_of([], left_out=left_out, options=[group])
    group["lr"] = 0.5
    assert before.unchanged()
    group["momentum"] = 0.5
    assert not before.unchanged()
    assert surroundings_of([], left_out=left_out, options=[group]).key != before.key


def test_gradients_are_clipped_by_their_joint_norm():
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    StepOptimizer(functools.partial(torch.optim.SGD, lr=1.0), clip_norm=1.0).update(parameters)
    torch.testing.assert_close(torch.cat(parameters).detach(), torch.tensor([-0.6, -0.8]))
