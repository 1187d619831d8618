"""The fastest form of a pruned net on this machine, by measurement."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import quax

from pyro_vd.common.deployment import Deployment, DeployRow
from pyro_vd.common.options import check_callable
from pyro_vd.numpyro.arguments import check_data, kind_of
from pyro_vd.numpyro.module import BayesianModule
from pyro_vd.numpyro.nets import adapt
from pyro_vd.numpyro.nets.net import Net
from pyro_vd.numpyro.sparsity.sparse import sparse_weight
from pyro_vd.sparsity.masks import check_number, check_share

FORMS = ("dense", "bcoo", "bcsr")
MIN_RUN_TIME = 0.2  # seconds of calls that are timed for each form
TOLERANCE = 1e-4  # sums are taken in another order

Timer = Callable[[Callable[[], Any]], float]


def deploy(
    net: Any,
    example_inputs: Any,
    *,
    forms: Sequence[str] = FORMS,
    min_sparsity: float = 0.9,
    timer: Timer | None = None,
) -> Deployment:
    """Try the forms of a pruned net on these inputs, and take the fastest.

    Every form is compiled, and its outputs are compared with those of ``net`` before it is timed. Which is fastest
    depends on zeros, sizes, batch and machine. A state (BatchNorm's averages) is that of ``net``.

    Args:
        net: what :func:`prune` returns, or any net of flax or equinox, in its mode for inference.
        example_inputs: an array, a tuple of positional or a mapping of keyword arguments, of the batch size that is to
            be fast; a batch for an equinox net, too, which is mapped over it.
        forms: of "dense" (the net as it is), "bcoo" and "bcsr" (sparse matrices of ``jax.experimental.sparse`` in the
            place of kernels and weights of two dimensions).
        min_sparsity: the share of zeros, 0..1, from which on a weight is stored sparse.
        timer: from a function without arguments to the seconds of a call. None: the median of many calls.

    Returns:
        A :class:`Deployment`: ``.net``, a compiled function of the inputs, ``.form``, ``.rows``; it prints as a table.

    Raises:
        ValueError: ``net`` does not take the examples, or gives nothing for them that can be compared; a form unknown;
            a share outside of 0..1; no form that works.
        TypeError: ``net`` is none of flax or equinox, or is a BayesianModule; a timer that is no function, or gives no
            number.

    Example:
        >>> net = eqx.nn.Linear(4, 2, key=jax.random.key(0))
        >>> net = eqx.tree_at(lambda net: net.weight, net, jnp.zeros((2, 4)).at[0, 1].set(3.0))
        >>> timer = lambda call, seconds=iter([2e-3, 1e-3]): next(seconds)
        >>> print(deploy(net, jnp.ones((5, 4)), forms=("dense", "bcoo"), min_sparsity=0.8, timer=timer))
        form              ms    elements       bytes
        dense         2.0000          10          40
        bcoo          1.0000           5          20  fastest

    See also:
        :class:`pyro_vd.numpyro.Deployment`, :func:`pyro_vd.numpyro.prune`.
    """
    if isinstance(forms, str) or not isinstance(forms, Sequence) or not forms or not all(f in FORMS for f in forms):
        raise ValueError(f"forms: expected several of {FORMS}, got {forms!r}")
    share = check_share("min_sparsity", min_sparsity)
    seconds_of: Timer = _median if timer is None else check_callable("timer", timer, "a function", "", "deploy")
    if isinstance(net, BayesianModule):
        raise TypeError(
            "deploy: expected a net with trained weights, got a BayesianModule, whose weights the guide has; pass "
            "prune(bnn, guide, params=params)"
        )
    adapted = adapt(net, "deploy")
    args, kwargs = _as_call(example_inputs)
    check_data("deploy", args, kwargs)
    try:
        adapted.prepare(args, kwargs)
        reference = _of(adapted, adapted.parameters)(*args, **kwargs)
    except Exception as error:
        shapes = [
            jnp.shape(leaf) if eqx.is_array_like(leaf) else kind_of(leaf) for leaf in jax.tree.leaves((args, kwargs))
        ]
        raise ValueError(
            f"deploy: expected example_inputs that the net takes, got {shapes}: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}; pass an array, a tuple of arguments or a mapping of keyword arguments"
        ) from error
    found = jax.tree.leaves(reference)
    if not any(np.any(np.equal(one, one)) for one in found):
        raise ValueError(
            "deploy: expected outputs to compare, arrays with an element that is not NaN, got shapes "
            f"{[jnp.shape(one) for one in found]}; pass examples of a batch that is not empty, without NaN, to a net "
            "that returns arrays"
        )
    made: dict[str, Callable] = {}
    rows = []
    for form in dict.fromkeys(forms):
        values = adapted.parameters if form == "dense" else _sparse(adapted, form, share)
        if values is adapted.parameters and form != "dense":
            rows.append(DeployRow(form, math.nan, 0, 0, f"no weight has a share of zeros of {share:g} or more"))
            continue
        run = _of(adapted, values)
        if problem := _difference(run(*args, **kwargs), reference):
            rows.append(DeployRow(form, math.nan, 0, 0, problem))
            continue
        seconds = check_number("timer", seconds_of(lambda: jax.block_until_ready(run(*args, **kwargs))), "timer=None")  # noqa: B023
        arrays = jax.tree.leaves((values, adapted.state))
        made[form] = run
        rows.append(DeployRow(form, 1e3 * seconds, sum(a.size for a in arrays), sum(a.nbytes for a in arrays)))
    if not made:
        raise ValueError(f"deploy: expected a form that works, got {[f'{row.form}: {row.problem}' for row in rows]}")
    fastest = min((row for row in rows if not row.problem), key=lambda row: row.milliseconds).form
    return Deployment(made[fastest], fastest, tuple(rows))


def _as_call(example_inputs: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs), {}) if isinstance(example_inputs, (tuple, list)) else ((example_inputs,), {})


def _of(adapted: Net, values: Mapping[str, Any]) -> Callable:
    """The net with these values, compiled."""

    @eqx.filter_jit
    def run(values: dict[str, Any], state: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        def call(values: dict[str, Any]) -> Any:
            return adapted.call(values, state, None, args, kwargs)[0]

        return quax.quaxify(call)(values)

    return lambda *args, **kwargs: run(dict(values), adapted.state, args, kwargs)


def _sparse(adapted: Net, form: str, share: float) -> dict[str, Any]:
    """The parameters with sparse weights; the same dict where there are none."""
    found = {
        name: sparse_weight(value, adapted.unit_dims(name)[1], form)
        for name, value in adapted.parameters.items()
        if value.ndim == 2 and value.size and adapted.weight_of(name) in ("kernel", "weight")
        and name.rpartition(".")[2] == adapted.weight_of(name) and float((value == 0).mean()) >= share
    }  # fmt: skip
    return {**adapted.parameters, **found} if found else adapted.parameters


def _difference(output: Any, reference: Any) -> str:
    """What is wrong with an output, in words; empty where nothing is."""
    for one, other in zip(jax.tree.leaves(output), jax.tree.leaves(reference), strict=True):
        ours, theirs = ((jnp.result_type(a).name, jnp.shape(a)) for a in (one, other))
        if ours != theirs:
            return f"an output of {ours} for {theirs}"
        if not np.allclose(one, other, TOLERANCE, TOLERANCE, equal_nan=True):
            return f"outputs up to {np.nanmax(np.abs(np.subtract(one, other))):.3g} apart"
    return ""


def _median(call: Callable[[], Any]) -> float:
    call()
    found, end = [], time.perf_counter() + MIN_RUN_TIME
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
