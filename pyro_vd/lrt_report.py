"""What a model does with its random weights: which operations use them, and which share is sampled locally."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Normal

from pyro_vd.arguments import check_programs, data_explained
from pyro_vd.buffers import keep_plain_buffers
from pyro_vd.common.reports import LRTReport, WeightUse
from pyro_vd.handlers import EstimatorMessenger, run_coherently
from pyro_vd.posteriors import WeightPosterior
from pyro_vd.posteriors.sites import base_distribution
from pyro_vd.rollback import undone
from pyro_vd.weights import RandomWeight


@torch.no_grad()
@undone()
def lrt_report(
    model: Callable,
    guide: Callable,
    *args: Any,
    shared_sites: Collection[str] = (),
    reuse: str = "error",
    **kwargs: Any,
) -> LRTReport:
    """Run guide and model once under local reparameterization, and say what became of every random weight.

    Args:
        model, guide: Pyro model and guide.
        *args, **kwargs: their arguments.
        shared_sites, reuse: see :func:`pyro_vd.lrt`.

    Returns:
        A row for every weight of the guide, and for every vector that it draws from a plain ``Normal``, once a step.
        Operations without a rule warn, as in training.

    Raises:
        ValueError: a guide without random weights; a weight used twice.

    Example:
        >>> import pyro, pyro_vd as vd
        >>> from pyro_vd.guides import AutoSparseVD
        >>> bnn = vd.BayesianModule(torch.nn.LSTM(3, 2), vd.ImproperLogUniform())
        >>> print(vd.lrt_report(bnn, AutoSparseVD(bnn), torch.ones(5, 3)))
        site                       shape    weights  sampled   operations
        net.weight_ih_l0             8x3         24  one draw  lstm
        net.weight_hh_l0             8x2         16  one draw  lstm
        0.0% of the weights are sampled locally

    See also:
        :class:`pyro_vd.LRTReport`, :func:`pyro_vd.operations_table`, :meth:`pyro_vd.BayesianModule.report`.
    """
    check_programs(model, guide)
    keep_plain_buffers(model, guide)
    handler = EstimatorMessenger("local", shared_sites, reuse)

    def run() -> Any:
        trace = poutine.trace(handler(guide)).get_trace(*args, **kwargs)
        poutine.replay(model, trace=trace)(*args, **kwargs)
        return trace

    with poutine.block(), data_explained("lrt_report", args, kwargs):
        guide_trace = run_coherently(run)
    rows = []
    for name, site in guide_trace.iter_stochastic_nodes():
        if not isinstance(base_distribution(site["fn"]), WeightPosterior) and not _is_plain_vector(site):
            continue
        value: Any = site["value"]
        operations, how = (), "one draw"
        if isinstance(value, RandomWeight):
            state = value.state
            operations = tuple(operation for operation, _ in state.used)
            how = "one draw" if state.draw is not None else "local" if operations else "not used"
        rows.append(WeightUse(name, tuple(value.shape), value.numel(), operations, how))
    if not rows:
        raise ValueError(
            f"lrt_report: expected a guide that samples random weights, got the sites "
            f"{[name for name, _ in guide_trace.iter_stochastic_nodes()]}; use a guide of pyro_vd.guides"
        )
    return LRTReport(tuple(rows))


def _is_plain_vector(site: Any) -> bool:
    fn = site["fn"]
    is_one = fn.event_dim == 1 and not fn.batch_shape and not site["cond_indep_stack"]
    return is_one and isinstance(base_distribution(fn), Normal) and not site["infer"].get("is_auxiliary")
