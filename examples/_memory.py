"""Peak memory of a training step of a perceptron of ten million weights, counted in bytes of live tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from _training import classifier, mlp
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.checkpoint import checkpoint

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

SIZES = (784, 2048, 2048, 2048, 10)
BATCH = 128
MODES = ("deterministic", "local", "checkpointed", "bf16", "compiled", "svi", "8 by svi", "8 at once")


class Peak(NamedTuple):
    """Bytes of all live tensors at the worst moment of a step: parameters, optimizer and gradients too; the largest."""

    bytes: int
    largest: int


class Checkpointed(nn.Module):
    """Layers that keep their inputs alone, and run again in the backward pass."""

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)  # type: ignore[assignment]
        return x


def peak(name: str, device: str = "cpu") -> Peak:
    """Measure the third step, where the state of Adam is there; of a compiled one the sixth, without a comparison.

    Args:
        name: "deterministic"; "local", eager; "checkpointed" and "bf16", as "local" with one of these; "compiled", by
            CompiledSVI; "svi", by ``pyro.infer.SVI``; "8 by svi", 8 particles of it; "8 at once", of the loss module.
        device: of the net.
    """
    earlier = 5 if name == "compiled" else 2
    if device != "cpu":
        step = _step(name, device)
        for _ in range(earlier):
            step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return Peak(torch.cuda.max_memory_allocated(), 0)
    # Profiled from the first tensor on: what a step frees was counted when it was made.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = _step(name, device)
        for _ in range(earlier):
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


def _step(name: str, device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    pyro.clear_param_store()
    net = mlp(SIZES, device)
    x, y = torch.rand(BATCH, SIZES[0], device=device), torch.randint(SIZES[-1], (BATCH,), device=device)
    parameters, loss = net.parameters(), lambda x, y: nn.functional.cross_entropy(net(x), y)
    if name != "deterministic":
        layers = Checkpointed(net) if name == "checkpointed" else net
        model = classifier(vd.BayesianModule(layers, vd.ImproperLogUniform()), BATCH)
        guide = AutoSparseVD(model)
        if name == "compiled":
            svi = vd.CompiledSVI(model, guide, torch.optim.Adam, vd.TraceVD_ELBO("local"), strict=True)
            return lambda: svi.step(x, y)
        elbo = vd.TraceVD_ELBO("local", num_particles=8 if name.startswith("8") else 1)
        if name.endswith("svi"):
            taken = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), elbo)  # type: ignore[attr-defined]
            return lambda: taken.step(x, y)
        loss = elbo(model, guide)
        parameters = loss.parameters()
    optimizer = torch.optim.Adam(parameters)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=name == "bf16"):
            value = loss(x, y)
        value.backward()
        optimizer.step()

    return step
