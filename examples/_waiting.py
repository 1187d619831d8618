"""How long a training waits for the compiler, with an empty cache of Inductor: with and without ``warm=True``."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from _programs import Problem, svi

import pyro_vd as vd

SETTINGS = {"CompiledSVI": False, "CompiledSVI, warm=True": True}


def table(problem: Problem, seconds: float, threads: int) -> str:
    """Each setting in a new process, for so many seconds."""
    lines = [f"{'':<24}{'longest step, s':>18}{f'steps in {seconds:g} s':>18}"]
    for name, warm in SETTINGS.items():
        with tempfile.TemporaryDirectory() as cache:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                longest, steps = pool.submit(_first_steps, problem, warm, seconds, threads, cache).result()
        lines.append(f"{name:<24}{longest:>18.1f}{steps:>18,}")
    return "\n".join(lines)


def _first_steps(problem: Problem, warm: bool, seconds: float, threads: int, cache: str) -> tuple[float, int]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(threads)
    batches = problem.batches()
    step = svi(problem, batches, elbo=vd.TraceVD_ELBO, make=partial(vd.CompiledSVI, warm=warm))
    longest, steps = 0.0, 0
    start = end = time.perf_counter()
    while end - start < seconds:
        step(steps % len(batches))
        begun, end = end, time.perf_counter()
        longest, steps = max(longest, end - begun), steps + 1
    return longest, steps
