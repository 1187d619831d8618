"""A table of compiled steps: for every net whether its step is compiled, and what it takes."""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterable

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD


def table(nets: Iterable[str], make: Callable[[str], tuple[Callable, Tensor, Tensor]]) -> None:
    """Print a row for each net: its step is compiled, and agrees with the eager one, or the warning says why not.

    Args:
        make: of a name the Pyro model, and the tensors of a batch.
    """
    print(f"{'net':<14} {'compiled':>8} {'first steps, s':>14} {'eager, ms':>10} {'compiled, ms':>12}")
    for net in nets:
        pyro.clear_param_store()
        model, x, y = make(net)
        adam, elbo = functools.partial(torch.optim.Adam, lr=1e-3), vd.TraceVD_ELBO(shared_sites="auto")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            guide = AutoSparseVD(model)
            eager = ms_a_step(SVI(model, guide, Adam({"lr": 1e-3}), elbo).step, x, y)
            svi, start = vd.CompiledSVI(model, guide, adam, elbo), time.perf_counter()
            for _ in range(3):  # the first is eager, the second is compiled, and taken eagerly beside it
                svi.step(x, y)
            first = time.perf_counter() - start
        reasons = [str(one.message) for one in caught if "can be compiled" in str(one.message)]
        fast = "" if reasons else f"{ms_a_step(svi.step, x, y):.2f}"
        print(f"{net:<14} {'no' if reasons else 'yes':>8} {first:>14.1f} {eager:>10.2f} {fast:>12}", flush=True)
        for reason in reasons:
            print(f"    {reason}")


def ms_a_step(step: Callable, x: Tensor, y: Tensor, number: int = 30) -> float:
    """The median over some steps, after three that are not counted."""
    times = []
    for _ in range(number + 3):
        start = time.perf_counter()
        step(x, y)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])
