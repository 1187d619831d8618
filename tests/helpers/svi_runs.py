"""Training by CompiledSVI and by its eager references from the same seed; no compiler where none is needed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch._inductor
from pyro import poutine
from torch import Tensor, nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

logging.getLogger("torch.__trace").setLevel(logging.WARNING)  # pytest would keep what PyTorch says of every operation
ADAM = functools.partial(torch.optim.Adam, lr=0.02)


def without_compiler(monkeypatch) -> list:
    """Let a recorded graph run as it is, where Inductor would compile it; returns the graphs, as they come."""
    graphs: list = []

    def keep(graph, example, **options):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", keep)
    return graphs


class Task(nn.Module):
    """A classifier as model and a guide, with four batches of data; the same for the same seed.

    Attributes:
        batches: tuples of arguments for a step.
    """

    def __init__(
        self,
        layers: Callable[[], nn.Module] | None = None,
        guide: Callable[[Callable], Callable] = AutoSparseVD,
        prior: Any = None,
        sizes: tuple[int, ...] = (8, 8, 8, 8),
    ):
        super().__init__()
        pyro.clear_param_store()
        torch.manual_seed(1)
        self.batches = [(torch.randn(size, 5), torch.randint(3, (size,))) for size in sizes]
        net = mlp() if layers is None else layers()
        self.bnn = vd.BayesianModule(net, vd.ImproperLogUniform() if prior is None else prior)
        self.guide = guide(self.model)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.bnn(x)
        with vd.data_plate(40, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def values() -> dict[str, Tensor]:
    """Every unconstrained parameter of Pyro's store, copied."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store()._params.items()}


def run(step: Callable[..., Any], batches: list, steps: int, seed: int = 3) -> list[float]:
    """Take steps over the batches in turn from a seed; returns the losses."""
    pyro.set_rng_seed(seed)
    return [float(step(*batches[i % len(batches)])) for i in range(steps)]


class HandWritten:
    """The reference for ``torch.optim``: loss, backward, clip, step, as one writes them by hand."""

    def __init__(self, model, guide, optim, loss, clip_norm: float | None = None, accumulate: int = 1):
        self.model, self.guide, self.loss = model, guide, loss
        self.optim, self.clip_norm, self.accumulate = optim, clip_norm, accumulate
        self.optimizer: Any = None
        self.taken = 0

    def step(self, *args: Any) -> float:
        capture: Any
        with poutine.trace(param_only=True) as capture:
            loss = self.loss.differentiable_loss(self.model, self.guide, *args)
        if self.taken == 0:
            met = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
            self.parameters = [p for p in met if p.requires_grad]
            self.optimizer = self.optim(self.parameters)
        (loss / self.accumulate).backward()
        self.taken += 1
        if self.taken % self.accumulate == 0:
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Every tensor is the expected one up to ``tolerance``, relative to its largest element."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        scale = value.abs().max().item() if value.is_floating_point() else 0.0
        torch.testing.assert_close(
            found[name], value, rtol=0.0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


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
