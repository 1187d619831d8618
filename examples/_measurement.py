"""A program of ``_programs.py`` under measurement: its first steps, its time, its memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from _machine import synchronize
from _programs import FIRST_STEPS, PROGRAMS, Problem

BLOCK = 0.1  # seconds
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Running:
    """A program that has taken its first steps. It has a parameter store to itself.

    Attributes:
        loss: of the first step, nats.
        first: seconds to set it up and take the first steps, compilation included.
        seconds, device_seconds: of a step, by wall clock and between CUDA events, one value a block.
    """

    def __init__(self, name: str, problem: Problem, batches: list):
        self.name, self.device = name, problem.device
        self._batches, self._taken = len(batches), 0
        self._store: Any = {"params": {}, "constraints": {}}
        before = held(self.device)
        start = time.perf_counter()
        with pyro.get_param_store().scope(self._store):
            self._step = PROGRAMS[name][1](problem, batches)
        self.loss = self.take(1)
        self.take(FIRST_STEPS - 1)
        self.first = time.perf_counter() - start
        self._at_rest = held(self.device) - before
        if self._in_jax:  # which has the batches once more
            self._at_rest -= sum(tensor.nbytes for batch in batches for tensor in batch)
        start = time.perf_counter()
        self.take(2)
        self._steps = max(1, min(200, round(2 * BLOCK / (time.perf_counter() - start))))
        self.seconds: list[float] = []
        self.device_seconds: list[float] = []

    def block(self) -> None:
        """Take a block of steps, after one to fill the caches, and note the time of one."""
        self.take(1)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._has_events else []
        start = time.perf_counter()
        if events:
            events[0].record()
        self.take(self._steps, *events[1:])
        self.seconds.append((time.perf_counter() - start) / self._steps)
        if events:
            self.device_seconds.append(events[0].elapsed_time(events[1]) / 1e3 / self._steps)

    def take(self, steps: int, end: torch.cuda.Event | None = None) -> float:
        """Take steps and wait for them; returns the last loss."""
        loss: Any = None
        with pyro.get_param_store().scope(self._store):
            for i in range(self._taken, self._taken + steps):
                loss = self._step(i % self._batches)
        self._taken += steps
        if end is not None:
            end.record()
        synchronize()
        return float(loss)

    def result(self) -> dict[str, float | None]:
        """Time, memory and first steps; None where one is unknown."""
        peak = None if self.device == "cuda" and not self._has_events else self._peak()  # JAX has its own memory there
        return {
            "ms": 1e3 * statistics.median(self.seconds) if self.seconds else None,
            "fastest_ms": 1e3 * min(self.seconds) if self.seconds else None,
            "device_ms": 1e3 * statistics.median(self.device_seconds) if self.device_seconds else None,
            "peak_MB": None if peak is None else peak / 1e6,
            "first_s": self.first,
        }

    def _peak(self) -> int | None:
        """Bytes of what it holds between steps and what a step needs besides."""
        more = peak_above_rest(lambda: self.take(3), self.device)
        return None if more is None else self._at_rest + more

    @property
    def _in_jax(self) -> bool:
        return self.name in ("numpyro", "lrt-jax")

    @property
    def _has_events(self) -> bool:
        return self.device == "cuda" and not self._in_jax


def held(device: str) -> int:
    """Bytes of the tensors and arrays that are alive; on a GPU, of what PyTorch has reserved for them."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]
    storages = [one.untyped_storage() for one in tensors if one.device.type == device and one.layout is torch.strided]
    jax = sys.modules.get("jax")
    arrays = jax.live_arrays() if jax else ()
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values()) + sum(array.nbytes for array in arrays)


def peak_above_rest(take_steps: Callable[[], object], device: str) -> int | None:
    """Bytes that ``take_steps`` needs at most beyond what is there before it; None where the system does not tell.

    On a CPU by the high-water mark of resident memory; on a GPU by what PyTorch reserves, since what a CUDA graph
    uses inside is not allocated when it is replayed.
    """
    before = held(device)
    if device == "cuda":
        take_steps()
        return torch.cuda.memory_reserved() - before
    if not RESET_PEAK.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, where it would hide a later peak
    RESET_PEAK.write_text("5")  # see man proc_pid_clear_refs
    before = resident()
    take_steps()
    return resident("VmHWM") - before


def resident(quantity: str = "VmRSS") -> int:
    """Resident memory of this process in bytes; "VmHWM": its high-water mark. Linux only."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{quantity}:"))
    return 1024 * int(line.split()[1])
