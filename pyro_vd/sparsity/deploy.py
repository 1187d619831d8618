"""The fastest form of a pruned net on this machine, by measurement."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pyro_vd.common.deployment import Deployment, DeployRow
from pyro_vd.common.options import check_callable
from pyro_vd.sparsity.csr import CSRLinear, to_csr
from pyro_vd.sparsity.inputs import IndexedLinear, index_inputs
from pyro_vd.sparsity.masks import check_number, check_share
from pyro_vd.sparsity.prune import remove_masks
from pyro_vd.sparsity.shrink import Examples, as_call, call_net, difference, shrink

FORMS = ("dense", "shrunk", "indexed", "csr", "compiled")
MIN_RUN_TIME = 0.2  # seconds of calls that are timed for each form
COMPILED_TOLERANCE = 1e-4  # compiled sums are taken in another order

Timer = Callable[[Callable[[], Any]], float]


def deploy(
    net: nn.Module,
    example_inputs: Examples,
    *,
    forms: Sequence[str] = FORMS,
    min_sparsity: float = 0.9,
    timer: Timer | None = None,
) -> Deployment:
    """Try the forms of a pruned net on these inputs, and take the fastest.

    Every form is for inference, in eval mode, and its outputs are compared with those of ``net`` before it is timed.

    Args:
        net: any torch module, masked or not.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments, of the batch size that is to
            be fast.
        forms: of "dense" (the net as it is), "shrunk" (:func:`shrink`), "indexed" and "csr" (:func:`index_inputs` and
            :func:`to_csr` of the shrunk net) and "compiled" (``torch.compile`` of the shrunk net, up to a minute).
        min_sparsity: see :func:`to_csr`.
        timer: from a function without arguments to the seconds of a call. None: the median of many calls.

    Returns:
        A :class:`Deployment`: ``.net``, ``.form``, ``.rows``; it prints as a table.

    Raises:
        ValueError: ``net`` does not take the examples, or gives nothing for them that can be compared; a form unknown;
            a share outside of 0..1; no form that works.
        TypeError: ``net`` is no torch module, or is a BayesianModule; a timer that is no function, or gives no number.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = net[2].weight[:, 1:].fill_(0.0)
        >>> seconds = iter([2e-3, 1e-3])
        >>> print(deploy(net, torch.ones(1, 3), forms=("dense", "shrunk"), timer=lambda call: next(seconds)))
        form              ms    elements       bytes
        dense         2.0000          26         104
        shrunk        1.0000           8          32  fastest

    See also:
        :class:`pyro_vd.Deployment`, :func:`pyro_vd.shrink`, :func:`pyro_vd.to_csr`, :func:`pyro_vd.save_sparse`.
    """
    if isinstance(forms, str) or not isinstance(forms, Sequence) or not forms or not set(forms) <= set(FORMS):
        raise ValueError(f"forms: expected several of {FORMS}, got {forms!r}")
    share = check_share("min_sparsity", min_sparsity)
    seconds_of: Timer = _median if timer is None else check_callable("timer", timer, "a function", "", "deploy")
    args, kwargs = as_call(example_inputs)
    dense = remove_masks(net, "deploy").eval()
    reference = call_net("deploy", dense, args, kwargs)
    made: dict[str, nn.Module] = {}
    rows = []
    for form in dict.fromkeys(forms):
        try:
            made[form] = _form(form, dense, made, example_inputs, share)
            with torch.no_grad():
                problem = difference(made[form](*args, **kwargs), reference, COMPILED_TOLERANCE)
        except Exception as error:  # such as that of a compiler: another form is taken
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if problem:
            rows.append(DeployRow(form, math.nan, 0, 0, problem))
            made.pop(form, None)
            continue
        tensors = list(made[form].state_dict().values())
        with torch.no_grad():
            seconds = check_number("timer", seconds_of(lambda: made[form](*args, **kwargs)), "timer=None")  # noqa: B023
        rows.append(DeployRow(form, 1e3 * seconds, sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors)))
    if not made:
        raise ValueError(f"deploy: expected a form that works, got {[f'{row.form}: {row.problem}' for row in rows]}")
    fastest = min((row for row in rows if not row.problem), key=lambda row: row.milliseconds).form
    return Deployment(made[fastest], fastest, tuple(rows))


def _form(form: str, dense: nn.Module, made: dict[str, nn.Module], example_inputs: Examples, share: float) -> nn.Module:
    if form == "dense":
        return dense
    shrunk = made["shrunk"] if "shrunk" in made else shrink(dense, example_inputs)
    if form == "indexed":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "index_inputs: expected a Linear layer")
            net = index_inputs(shrunk, 0.0)
        if not any(isinstance(layer, IndexedLinear) for layer in net.modules()):
            raise ValueError("no Linear layer of the shrunk net has an unused input")
        return net
    if form == "csr":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "to_csr: expected a Linear layer")
            net = to_csr(shrunk, share)
        if not any(isinstance(layer, CSRLinear) for layer in net.modules()):
            raise ValueError(f"no Linear layer of the shrunk net has a share of zeros of {share:g} or more")
        return net
    return torch.compile(shrunk) if form == "compiled" else shrunk  # type: ignore[return-value]


def _median(call: Callable[[], Any]) -> float:
    from torch.utils import benchmark

    threads = torch.get_num_threads()
    timer = benchmark.Timer("call()", globals={"call": call}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=MIN_RUN_TIME).median
