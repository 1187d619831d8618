"""The programs that ``benchmark.py`` compares. Each takes training steps of one net, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import _handwritten
import pyro
import pyro.distributions as dist
import torch
from _handwritten import LRTConv2d, LRTLinear
from _training import classifier
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

DATASET_SIZE = 60_000
LR = 1e-5  # small, so that random labels are not learned: gradients would fade, and denormal numbers are slow on a CPU
FIRST_STEPS = 3  # CompiledSVI compiles in the second, and its third is the first that is compiled
LRT: dict[str, Any] = {"linear": LRTLinear, "conv": LRTConv2d}

Step = Callable[[int], Any]  # the number of a batch -> the loss, whose computation may go on


@dataclass(frozen=True)
class Problem:
    """A net and what it is trained on; ``width`` and ``depth`` (hidden layers) count for "mlp" alone."""

    net: str
    width: int
    depth: int
    batch: int
    device: str = "cpu"

    def build(self, linear: type[nn.Linear] = nn.Linear, conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Module:
        """The net, from the same seed with every kind of layer."""
        torch.manual_seed(0)
        hidden = [300, 100] if self.net == "lenet-300-100" else [self.width] * self.depth
        if self.net == "lenet-5":
            return _handwritten.lenet_5(linear, conv).to(self.device)
        return _handwritten.mlp([784, *hidden, 10], linear).to(self.device)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Random images and labels: 16 batches to go round, since one batch over and over would be learned."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, 28, 28) if self.net == "lenet-5" else (784,)
        return [
            (
                torch.rand(self.batch, *shape, generator=generator).to(self.device),
                torch.randint(10, (self.batch,), generator=generator).to(self.device),
            )
            for _ in range(16)
        ]

    def sizes(self) -> dict[str, Any]:
        weights = sum(parameter.numel() for parameter in self.build().parameters() if parameter.dim() > 1)
        hidden = {"width": self.width, "depth": self.depth} if self.net == "mlp" else {"width": None, "depth": None}
        return {"net": self.net, "weights": weights, **hidden, "batch": self.batch}

    def __str__(self) -> str:
        size = f" of width {self.width} and {self.depth} hidden layers" if self.net == "mlp" else ""
        return f"{self.net}{size}, batch {self.batch}"


def by_hand(problem: Problem, batches: list, lrt: bool = True, compiled: bool = False) -> Step:
    net = problem.build(**LRT) if lrt else problem.build()
    loss = partial(_handwritten.negative_elbo if lrt else _handwritten.nll, net, dataset_size=DATASET_SIZE)
    return _handwritten.training(loss, net.parameters(), batches, LR, compiled)


def by_hand_in_pyro(problem: Problem, batches: list) -> Step:
    """The layers written by hand as a Pyro program: what Pyro's own trace of guide and model takes, and nothing else.

    A weight is one site, whose value is a tensor that is there; noise and KL are those of the layers.
    """
    net = problem.build(**LRT)
    layers = {name: one for name, one in net.named_modules() if isinstance(one, (LRTLinear, LRTConv2d))}

    def guide(x: Tensor, y: Tensor) -> None:
        for name, layer in layers.items():
            loc = pyro.param(f"{name}.loc", layer.weight)
            pyro.param(f"{name}.log_sigma2", layer.log_sigma2)
            pyro.sample(f"{name}.weight", dist.Delta(loc, event_dim=loc.dim()))

    def model(x: Tensor, y: Tensor) -> None:
        for name, layer in layers.items():
            pyro.param(f"{name}.bias", layer.bias)
            pyro.sample(f"{name}.weight", dist.Delta(layer.weight, event_dim=layer.weight.dim()))
        logits = net(x)
        with vd.data_plate(DATASET_SIZE, len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        guide_trace = poutine.trace(guide).get_trace(x, y)
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x, y)
        trace.compute_log_prob(lambda name, site: site["is_observed"])
        return _handwritten.kl(net) - trace.nodes["y"]["log_prob_sum"]

    return _handwritten.training(loss, net.parameters(), batches, LR)


def by_hand_in_cuda_graph(problem: Problem, batches: list) -> Step:
    net = problem.build(**LRT)
    loss = partial(_handwritten.negative_elbo, net, dataset_size=DATASET_SIZE)
    return _handwritten.training_in_cuda_graph(loss, net.parameters(), batches, LR)


def bayesian(problem: Problem) -> tuple[Callable, Callable]:
    model = classifier(vd.BayesianModule(problem.build(), vd.ImproperLogUniform()), DATASET_SIZE)
    return model, AutoSparseVD(model)


def svi(problem: Problem, batches: list, elbo: Any, handler: Any = lambda guide: guide, make: Any = SVI) -> Step:
    model, guide = bayesian(problem)
    steps = make(model, handler(guide), Adam({"lr": LR}), elbo())
    return lambda i: steps.step(*batches[i])


def loss_module(problem: Problem, batches: list) -> Step:
    model, guide = bayesian(problem)
    guide(*batches[0])  # makes its parameters
    loss = vd.TraceVD_ELBO()(model, guide)
    return _handwritten.training(loss, loss.parameters(), batches, LR)


def in_jax(problem: Problem, batches: list, name: str) -> Step:
    """A step of ``_handwritten_jax.py``; ImportError where what it needs is not installed."""
    import _handwritten_jax
    import jax
    import jax.numpy as jnp

    if problem.device == "cuda" and jax.default_backend() != "gpu":
        raise ImportError("JAX has no GPU here")
    arrays = [parameter.detach().cpu().numpy() for parameter in problem.build().parameters()]
    step = getattr(_handwritten_jax, name)(arrays[::2], arrays[1::2], DATASET_SIZE, LR)
    converted = [tuple(jnp.array(tensor.cpu().numpy()) for tensor in batch) for batch in batches]
    return lambda i: step(*converted[i])


# name: (what it is, problem and batches -> step)
PROGRAMS: dict[str, tuple[str, Callable[[Problem, list], Step]]] = {
    "deterministic": ("the net without noise, fused Adam", partial(by_hand, lrt=False)),
    "deterministic-compiled": ("the same, loss under torch.compile", partial(by_hand, lrt=False, compiled=True)),
    "lrt": ("hand-written layers, fused Adam", by_hand),
    "lrt-compiled": ("the same, loss under torch.compile", partial(by_hand, compiled=True)),
    "lrt-cuda-graph": ("the same, the whole step a CUDA graph", by_hand_in_cuda_graph),
    "lrt-pyro": ("hand-written layers as a Pyro program", by_hand_in_pyro),
    "svi-weight-draws": ("pyro SVI, TraceMeanField_ELBO", partial(svi, elbo=TraceMeanField_ELBO)),
    "svi-lrt": ("the same, vd.lrt(guide)", partial(svi, elbo=TraceMeanField_ELBO, handler=vd.lrt)),
    "svi-vd": ("pyro SVI, TraceVD_ELBO", partial(svi, elbo=vd.TraceVD_ELBO)),
    "vd-loss": ("TraceVD_ELBO as a module, fused Adam", loss_module),
    "compiled-svi": ("CompiledSVI, TraceVD_ELBO", partial(svi, elbo=vd.TraceVD_ELBO, make=vd.CompiledSVI)),
    "numpyro": ("numpyro SVI, TraceVD_ELBO, jit", partial(in_jax, name="numpyro_step")),
    "lrt-jax": ("hand-written in JAX, jit", partial(in_jax, name="handwritten")),
}
