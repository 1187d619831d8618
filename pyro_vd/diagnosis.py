"""Which input of a step is NaN or infinite, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vd.handlers import base_distribution


def non_finite_input(guide: Any, args: tuple, kwargs: dict) -> str | None:
    """Name the first NaN or infinity among guide distributions, data arguments and parameters; None without one.

    Args:
        guide: the guide, or its trace.
        args, kwargs: what the step was called with.
    """
    trace = guide if isinstance(guide, Trace) else poutine.block(poutine.trace(guide).get_trace)(*args, **kwargs)
    for where, tensor in (*_distributions(trace), *_data(args, kwargs), *_parameters()):
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            return f"{where} holds {bad} NaN or infinite of {tensor.numel()} values"
    return None


def _distributions(trace: Trace) -> Iterator[tuple[str, Tensor]]:
    for name, site in trace.iter_stochastic_nodes():
        for parameter, value in vars(base_distribution(site["fn"])).items():
            if isinstance(value, Tensor):
                yield f"{parameter.strip('_')} of site {name!r}", value


def _data(args: tuple, kwargs: dict) -> Iterator[tuple[str, Tensor]]:
    for name, arg in (*enumerate(args), *kwargs.items()):
        for leaf in tree_leaves(arg):
            if isinstance(leaf, Tensor):
                yield f"data argument {name!r}", leaf


def _parameters() -> Iterator[tuple[str, Tensor]]:
    for name, value in pyro.get_param_store().named_parameters():
        yield f"parameter {name!r}", value
