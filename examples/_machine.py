"""What a machine does at best: the floor under the time of a training step."""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


def floor(net: nn.Module, batch: tuple[Tensor, Tensor], lrt: bool) -> dict[str, float]:
    """The longer of the times for arithmetic and for memory, as if they overlapped; and both.

    Arithmetic: ``2 * batch * weights`` FLOP for the output, as much for the gradient of the weights and, but in the
    first layer, for that of the input (in a convolution, at every position); twice all that for mean and variance.
    Memory: each parameter, its gradient and Adam's two moments read and written once, 32 bytes a parameter; with local
    reparameterization a weight has two.
    """
    device = batch[0].device.type
    x, y = (tensor.to("meta") for tensor in batch)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(copy.deepcopy(net).to("meta")(x), y).backward()
    flop = counter.get_total_flops() * (2 if lrt else 1)
    traffic = 32 * sum(p.numel() * (2 if lrt and p.dim() > 1 else 1) for p in net.parameters())
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    seconds = max(flop / gemm_rate(device, dtype), traffic / copy_rate(traffic, device))
    return {"floor_ms": 1e3 * seconds, "GFLOP": flop / 1e9, "MB_moved": traffic / 1e6}


@functools.cache
def gemm_rate(device: str, dtype: torch.dtype = torch.float32) -> float:
    """FLOP per second of a product of large matrices, the best of several."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _least_time(lambda: torch.mm(a, b))


@functools.cache
def copy_rate(traffic: int, device: str) -> float:
    """Bytes read and written per second by a copy that moves ``traffic`` bytes: from cache where these fit in it."""
    source = torch.rand(max(1024, traffic // 8), device=device)
    target = torch.empty_like(source)
    return 8 * len(source) / _least_time(lambda: target.copy_(source))


def use_threads(number: int) -> None:
    """Use that many CPU threads in PyTorch and, where the system can, in JAX, which has no option for it."""
    torch.set_num_threads(number)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _least_time(run: Callable[[], object], repeats: tuple[int, int] = (3, 50), seconds: float = 0.5) -> float:
    times: list[float] = []
    while len(times) < repeats[0] or (len(times) < repeats[1] and sum(times) < seconds):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
