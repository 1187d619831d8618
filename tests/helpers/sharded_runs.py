"""Two processes that train one loss module under FSDP2, and compare with one process."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor
from torch import Tensor, distributed, nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

_MAKE = torch.Generator().manual_seed(1)
PARTS = [(torch.randn(6, 3, generator=_MAKE), torch.randn(6, 2, generator=_MAKE)) for _ in range(2)]


def make() -> tuple[nn.Module, nn.Module]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), vd.ImproperLogUniform())

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        mean = bnn(x)
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    return vd.TraceVD_ELBO()(model, AutoSparseVD(model)), bnn


def averaged(steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One process: the first gradients, and the parameters after steps with the mean of both gradients."""
    loss, _ = make()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        optimizer.zero_grad()
        for rank in range(2):
            torch.manual_seed(10 * step + rank)
            (loss(*PARTS[rank]) / 2).backward()
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
        optimizer.step()
    return gradients, {name: value.detach().clone() for name, value in loss.named_parameters()}


def worker(rank: int, rendezvous: str, results: str) -> None:
    from torch.distributed.fsdp import fully_shard

    limit = timedelta(seconds=60)
    distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2, timeout=limit)
    torch.set_num_threads(1)
    torch._inductor.compile = lambda graph, example, **options: graph  # type: ignore[attr-defined]
    part, _ = make()
    fully_shard(part.guide)
    with pytest.raises(ValueError, match=r"got shards of \['guide.locs.net.0.weight', .*write fully_shard\(loss\)"):
        part(*PARTS[rank])
    torch.save({kind: three_steps(kind, rank) for kind in ("eager", "compiled")}, f"{results}{rank}")
    distributed.destroy_process_group()


def three_steps(kind: str, rank: int) -> tuple:
    """The first gradients, the parameters at the end, the losses, numbers of a shard, and a table."""
    from torch.distributed.fsdp import fully_shard

    module, _ = make()
    loss: Any = vd.compile_loss(module, strict=True) if kind == "compiled" else module
    fully_shard(loss)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    gradients: dict[str, Tensor] = {}
    losses: list[float] = []
    for step in range(3):
        optimizer.zero_grad()
        torch.manual_seed(10 * step + rank)
        value = loss(*PARTS[rank])
        value.backward()
        losses.append(float(value.detach()))
        if not gradients:
            gradients = {name: p.grad.full_tensor() for name, p in loss.named_parameters() if p.grad is not None}
        optimizer.step()
    held = sum(p.to_local().numel() for p in loss.parameters())
    moments = sum(state["exp_avg"].to_local().numel() for state in optimizer.state.values())
    whole = {name: p.detach().full_tensor() for name, p in loss.named_parameters()}
    loss.unshard()
    return gradients, whole, losses, held, moments, str(vd.sparsity_report(module.guide))
