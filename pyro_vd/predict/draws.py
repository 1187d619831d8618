"""Draws from the posterior predictive distribution."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vd._pyro import Prediction
from pyro_vd.arguments import check_programs, check_whole, data_explained
from pyro_vd.buffers import keep_plain_buffers
from pyro_vd.common.options import check_known, check_names, shown
from pyro_vd.common.predictions import MODES, check_prediction, pieces_of
from pyro_vd.handlers import EstimatorMessenger, posterior_mean, run_coherently
from pyro_vd.predict.blocks import Blocks, Parts
from pyro_vd.predict.placeholders import Given
from pyro_vd.predict.rows import guide_of_one_row
from pyro_vd.rollback import undone
from pyro_vd.seeded import seed_watched

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
            same draw over the pieces. A value that is not along the examples must be the same in all pieces.
        return_sites: names of the sites to return, "_RETURN" for what the model returns; if empty, all but the guide's
            and those that are observed.
        shared_sites, reuse: for mode "local", see :func:`pyro_vd.lrt`.

    Returns:
        ``{site: values}``, shape ``(num_samples, *shape of the site)``. Draws run side by side where ``torch.vmap``
        can run the model, as many as fit 32 MiB of weights and activations; one by one where not (a model that looks at
        values, or changes a tensor in place).
        Beyond that memory grows with the outputs alone. Noise must come from torch or Pyro: a model that draws from
        NumPy, ``random`` or a generator of its own runs one by one where that is noticed (global generators, samples,
        another result at the same seed). Of a single example, mode "weights"
        draws the output of a layer that sees one row of inputs, unless ``return_sites`` has sites of the guide: the
        same distribution, by fewer random numbers.

    Raises:
        ValueError: unknown mode; num_samples or batch_size < 1; batch_size with nothing to cut, or with
            a guide that has sites inside a plate; a name in return_sites that the model does not have; a site that has
            another shape in another draw, or is not in every one; with batch_size, a site that is not in every piece,
            or has no axis of examples and another value in another piece (a latent site of the model alone); a model
            that observes all its sites (called with its labels).
        TypeError: a model that is asked for what it returns, and returns no tensor.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     return pyro.sample("y", dist.Normal(x * pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0).to_event(1))
        >>> def guide(x):
        ...     pyro.sample("w", dist.Normal(2.0, 0.1))
        >>> posterior_predictive(model, guide, torch.ones(5), num_samples=3)["y"].shape
        torch.Size([3, 5])

    See also:
        :func:`pyro_vd.predictive_distribution`, :func:`pyro_vd.to_arviz`.
    """
    check_programs(model, guide)
    check_whole("posterior_predictive", guide.named_parameters() if isinstance(guide, nn.Module) else ())
    keep_plain_buffers(model, guide)
    sites = (return_sites,) if isinstance(return_sites, str) else check_names("return_sites", return_sites)
    check_prediction(MODES, mode, num_samples, batch_size)
    by_rows = guide_of_one_row(guide, mode, args, kwargs)
    guide = posterior_mean(guide) if mode == "mean" else guide
    guide = EstimatorMessenger("local" if mode == "local" else "shared", shared_sites, reuse)(guide)
    pieces, lengths = pieces_of(args, kwargs, batch_size)
    run = DrawsOfValues(
        model, guide, (args, kwargs), pieces, lengths, mode != "local", mode == "mean", by_rows, sites=set(sites)
    )
    with Prediction(), seed_watched():
        return {site: values for site, (_, (values,)) in run.draws(num_samples).items()}


class DrawsOfValues(Blocks):
    """The values at the sites of a model at draws of its guide.

    Args:
        sites: names to keep; all but the guide's if empty.
        others: those of :class:`Blocks`.
    """

    def __init__(self, *others: Any, sites: set[str]):
        super().__init__(*others, caller="posterior_predictive")
        self.sites = sites

    def _run(self, values: dict[str, Any] | None, piece: tuple[tuple, dict]) -> dict[str, Tensor]:
        args, kwargs = piece

        def run() -> dict[str, Tensor]:
            given = self._guide_values(piece) if values is None else values
            with data_explained("posterior_predictive", args, kwargs):
                trace = poutine.trace(Given(given)(self.model)).get_trace(*args, **kwargs)
            nodes: Any = prune_subsample_sites(trace).nodes
            sampled = [name for name, site in nodes.items() if site["type"] == "sample"]
            check_known("return_sites", self.sites, [*sampled, RETURN])
            found = {RETURN: _returned(nodes[RETURN]["value"])} if RETURN in self.sites else {}
            wanted = self.sites or _predicted(nodes, sampled, self.guided)
            return found | {name: nodes[name]["value"] for name in sampled if name in wanted}

        return run_coherently(run)

    def _parts(self, run: dict[str, Tensor]) -> Parts:
        return {name: (None, [value]) for name, value in run.items()}

    def _parts_of_first(self, run: dict[str, Tensor], length: int) -> Parts:
        for name, value in run.items():
            along = value.dim() > 0 and value.shape[0] == length
            self.along[name] = along and self.along.get(name, True)
        return self._parts(run)

    def _together(self, tensors: Sequence[Tensor], dim: int) -> Tensor:
        return torch.cat(list(tensors), dim)


def _predicted(nodes: Any, sampled: list[str], guided: set[str]) -> set[str]:
    """The sites that neither the guide nor the data have given; an error where there is nothing to predict."""
    new = set(sampled) - guided
    data = {site for site in new if nodes[site]["is_observed"] and not nodes[site]["infer"].get("_deterministic")}
    if data and not any(not nodes[site]["is_observed"] for site in new):
        raise ValueError(
            f"posterior_predictive: expected a model with a site to predict, got one that observes {sorted(data)}; "
            "call it without the labels (leave y out), or name return_sites="
        )
    return new - data


def _returned(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"return_sites: expected a model that returns a tensor for {RETURN!r}, got {shown(value)}; name the "
            "sites, or return one tensor"
        )
    return value
