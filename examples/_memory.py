"""Peak memory of a training step of a perceptron of ten million weights, counted in bytes of live tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from _training import classifier, mlp
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

SIZES = (784, 2048, 2048, 2048, 10)
BATCH = 128


class Peak(NamedTuple):
    """Bytes of all live tensors at the worst moment of a step: parameters, optimizer and gradients too; the largest."""

    bytes: int
    largest: int


def peak(name: str, device: str = "cpu") -> Peak:
    """Measure the third step: the state of Adam is made by then."""
    if device != "cpu":
        step = _step(name, device)
        for _ in range(2):
            step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return Peak(torch.cuda.max_memory_allocated(), 0)
    # Profiled from the first tensor on: what a step frees was counted when it was made.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = _step(name, device)
        for _ in range(2):
            step()
        with record_function("measured step"):
            step()
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    begin = next(event.start_ns() for event in events if event.name() == "measured step")
    live = top = largest = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns()):
        live += event.nbytes()
        if event.start_ns() >= begin:
            top, largest = max(top, live), max(largest, event.nbytes())
    return Peak(top, largest)


def _step(name: str, device: str) -> Callable[[], None]:
    torch.manual_seed(0)
    pyro.clear_param_store()
    net = mlp(SIZES, device)
    x, y = torch.rand(BATCH, SIZES[0], device=device), torch.randint(SIZES[-1], (BATCH,), device=device)
    parameters, loss = net.parameters(), lambda x, y: nn.functional.cross_entropy(net(x), y)
    if name == "local":
        model = classifier(vd.BayesianModule(net, vd.ImproperLogUniform()), BATCH)
        guide = AutoSparseVD(model)
        guide(x, y)
        loss = vd.TraceVD_ELBO("local")(model, guide)
        parameters = loss.parameters()
    optimizer = torch.optim.Adam(parameters)

    def step() -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    return step
