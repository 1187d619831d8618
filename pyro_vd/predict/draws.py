"""Posterior predictive, one weight draw in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vd._pyro import Prediction
from pyro_vd.arguments import check_programs, data_explained
from pyro_vd.common.examples import batch_bounds, number_of_examples, take_examples
from pyro_vd.common.options import check_choice, check_count, check_known, check_names, shown
from pyro_vd.handlers import EstimatorMessenger, posterior_mean, run_coherently
from pyro_vd.rollback import undone

MODES = ("weights", "local", "mean")
RETURN = "_RETURN"  # Pyro's name for what a model returns


@torch.no_grad()
@undone()
def posterior_predictive(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int,
    mode: str = "weights",
    batch_size: int | None = None,
    return_sites: Collection[str] | str = (),
    shared_sites: Collection[str] = (),
    reuse: str = "error",
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Draws from the posterior predictive distribution of a model, as ``pyro.infer.Predictive`` gives them.

    Args:
        model, guide: Pyro model and guide. The model is called without its observed data (leave ``y`` out).
        *args, **kwargs: their arguments.
        num_samples: number of draws.
        mode: "weights": each draw is one function, its weights drawn once (use it for joint
            predictions, function plots, disagreement). "local": noise of its own for every output element, as in
            training; two nearly equal inputs come out unrelated. "mean": the posterior mean of every guide
            site, the mean network.
        batch_size: run this many examples at a time. Tensors among the arguments whose first axis is as long
            as that of the first one are cut along it. In modes "weights" and "mean" a draw stays the
            same draw over the pieces.
        return_sites: names of the sites to return, "_RETURN" for what the model returns; if empty, all sites but the
            guide's.
        shared_sites, reuse: for mode "local", see :func:`pyro_vd.lrt`.

    Returns:
        ``{site: values}``, shape ``(num_samples, *shape of the site)``. Memory grows with the outputs
        alone: one draw of the weights is held at a time.

    Raises:
        ValueError: unknown mode; num_samples or batch_size < 1; batch_size with nothing to cut, or with
            a guide that has sites inside a plate; a name in return_sites that the model does not have.
        TypeError: a model that is asked for what it returns, and returns no tensor.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     return pyro.sample("y", dist.Normal(x * pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0).to_event(1))
        >>> def guide(x):
        ...     pyro.sample("w", dist.Normal(2.0, 0.1))
        >>> posterior_predictive(model, guide, torch.ones(5), num_samples=3)["y"].shape
        torch.Size([3, 5])
    """
    check_programs(model, guide)
    check_choice("mode", mode, MODES)
    sites = (return_sites,) if isinstance(return_sites, str) else check_names("return_sites", return_sites)
    if check_count("num_samples", num_samples) < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    if batch_size is not None and check_count("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    local = EstimatorMessenger("local", shared_sites, reuse) if mode == "local" else None
    guide = posterior_mean(guide) if mode == "mean" else guide
    draws: dict[str, list[Tensor]] = {}
    with Prediction():
        for _ in range(num_samples):
            for site, value in _one_draw(model, guide, args, kwargs, local, batch_size, set(sites)).items():
                draws.setdefault(site, []).append(value)
    return {site: torch.stack(values) for site, values in draws.items()}


def _one_draw(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    local: EstimatorMessenger | None,
    batch_size: int | None,
    sites: set[str],
) -> dict[str, Tensor]:
    chunks, lengths = [(args, kwargs)], [0]
    if batch_size is not None:
        bounds = batch_bounds(number_of_examples(args, kwargs), batch_size)
        chunks = [take_examples(args, kwargs, slice(*ends)) for ends in pairwise(bounds)]
        lengths = [number_of_examples(*chunk) for chunk in chunks]
    shared = None if local else poutine.trace(guide).get_trace(*args, **kwargs)
    if shared is not None and len(chunks) > 1:
        inside = [name for name, site in shared.iter_stochastic_nodes() if site["cond_indep_stack"]]
        if inside:
            raise ValueError(
                f"batch_size: expected a guide without sites inside a plate, got {inside}, which cannot be cut; call "
                "posterior_predictive once for each piece of the data instead"
            )
    pieces: dict[str, list[Tensor]] = {}
    site: Any
    for chunk_args, chunk_kwargs in chunks:

        def traces(args: tuple = chunk_args, kwargs: dict = chunk_kwargs) -> tuple[Any, Any]:
            trace = poutine.trace(local(guide)).get_trace(*args, **kwargs) if local else shared
            with data_explained("posterior_predictive", args, kwargs):
                return trace, poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)

        trace, run = run_coherently(traces)
        nodes = prune_subsample_sites(run).nodes
        check_known("return_sites", sites, [n for n, s in nodes.items() if s["type"] == "sample" or n == RETURN])
        if RETURN in sites:
            pieces.setdefault(RETURN, []).append(_returned(nodes[RETURN]["value"]))
        for name, site in nodes.items():
            if site["type"] == "sample" and (name in sites if sites else name not in trace.nodes):
                pieces.setdefault(name, []).append(site["value"])
    return {name: _join(values, lengths) for name, values in pieces.items()}


def _returned(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"return_sites: expected a model that returns a tensor for {RETURN!r}, got {shown(value)}; name the "
            "sites, or return one tensor"
        )
    return value


def _join(values: list[Tensor], lengths: list[int]) -> Tensor:
    """Put the pieces of one site together along the axis of examples; a site without it is in every piece."""
    along = [v.dim() > 0 and v.shape[0] == n for v, n in zip(values, lengths, strict=True)]
    return torch.cat(values) if len(values) > 1 and all(along) else values[0]
