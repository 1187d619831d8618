"""Mixed precision in a loop of one's own, with torch.amp.GradScaler: steps without a finite gradient are left out."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import Task, without_compiler

ADAM = {"lr": 0.02}


def losses(scale, dtype, compiled=False, steps=4):
    """A loop; returns the losses of the steps that the scaler took, how many it left out, and all parameters."""
    task = Task()
    module = vd.TraceVD_ELBO()(task.model, task.guide)
    loss = vd.compile_loss(module) if compiled else module
    optimizer = torch.optim.Adam(loss.parameters(), **ADAM)
    scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0, backoff_factor=2.0**-10)
    taken, left_out = [], 0
    while len(taken) < steps:
        before = [value.detach().clone() for value in loss.parameters()]
        noise, moments = torch.get_rng_state(), len(optimizer.state)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            value = loss(*task.batches[len(taken)])
        scaler.scale(value).backward()
        found = [p.grad for p in loss.parameters() if p.grad is not None]
        finite = all(bool(gradient.isfinite().all()) for gradient in found)
        scaler.step(optimizer)
        scaler.update()
        if finite:
            taken.append(float(value.detach()))
            continue
        left_out += 1
        torch.set_rng_state(noise)  # the same step again
        assert len(optimizer.state) == moments
        assert all(torch.equal(one, other) for one, other in zip(before, loss.parameters(), strict=True))
    return taken, left_out, torch.cat([value.detach().flatten() for value in loss.parameters()])


@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [(torch.bfloat16, False), (None, False), pytest.param(None, True, marks=pytest.mark.slow)],
    ids=["bf16", "float32", "compiled"],
)
def test_a_scale_that_is_too_large_is_made_smaller_and_changes_nothing_else(dtype, compiled, monkeypatch):
    without_compiler(monkeypatch)
    expected, none, parameters = losses(None, dtype, compiled)
    taken, left_out, found = losses(2.0**127, dtype, compiled)
    assert none == 0 < left_out
    if compiled:  # the steps that were left out are eager ones, which are rounded otherwise
        torch.testing.assert_close((taken, found), (expected, parameters), rtol=1e-4, atol=1e-4)
    else:  # a power of two is exact
        assert taken == expected and torch.equal(found, parameters)


def test_float16_trains_under_a_scaler_as_float32_does():
    expected, _, parameters = losses(None, None)
    taken, left_out, found = losses(2.0**40, torch.float16)
    assert left_out > 0 and taken == pytest.approx(expected, rel=0.01)
    # Adam's first steps are signs of the gradient: nearly all are those of float32, none is lost to 0
    assert (found - parameters).abs().quantile(0.9) < 0.01 * ADAM["lr"] * 4


def test_a_compiled_loss_is_eager_under_float16(monkeypatch):
    graphs = without_compiler(monkeypatch)
    with pytest.warns(UserWarning, match="autocast to float16.* GradScaler .*torch.bfloat16.* eager from here on"):
        found = losses(2.0**10, torch.float16, compiled=True)
    assert graphs == [] and found[0] == losses(2.0**10, torch.float16)[0]
    task = Task()
    loss = vd.compile_loss(vd.TraceVD_ELBO()(task.model, task.guide), strict=True)
    loss(*task.batches[0])
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="autocast to float16"):
        loss(*task.batches[0])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_float64_throughout(compiled, monkeypatch):
    without_compiler(monkeypatch)
    task = Task(lambda: nn.Linear(5, 3))
    module = vd.TraceVD_ELBO(num_particles=2)(task.model, task.guide).double()
    loss = vd.compile_loss(module) if compiled else module
    x, y = task.batches[0]
    for _ in range(2):
        value = loss(x.double(), y)
    value.backward()
    assert value.dtype == torch.float64
    assert {p.grad.dtype for p in loss.parameters() if p.grad is not None} == {torch.float64}
