"""predictive_distribution: the likelihood of every observation site at many draws, kept as one distribution."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_vd._pyro import Prediction
from pyro_vd.arguments import check_programs, check_whole, data_explained
from pyro_vd.buffers import keep_plain_buffers
from pyro_vd.common.predictions import MODES, check_on_unknown, check_prediction, pieces_of, wanted_sites
from pyro_vd.handlers import EstimatorMessenger, posterior_mean, run_coherently
from pyro_vd.predict.blocks import Blocks
from pyro_vd.predict.distribution import Predictive
from pyro_vd.predict.moments import GaussianTensor, drawn, gaussian_weights
from pyro_vd.predict.pieces import Parts, joined
from pyro_vd.predict.placeholders import Given, ValueIsUsed
from pyro_vd.predict.rows import guide_of_one_row
from pyro_vd.predict.stacking import Structure, is_along, stacked, take_apart, taken_apart
from pyro_vd.rollback import undone
from pyro_vd.seeded import seed_watched

# Mode "moments" draws every parameter of a likelihood around its mean.
_OF_MOMENTS = (
    '; a draw of a parameter in mode="moments" may leave its domain where it is taken for a Gaussian; write '
    'mode="weights"'
)


@torch.no_grad()
@undone()
def predictive_distribution(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 100,
    mode: str = "weights",
    batch_size: int | None = None,
    sites: Collection[str] = (),
    shared_sites: Collection[str] = (),
    reuse: str = "error",
    on_unknown: str = "error",
    **kwargs: Any,
) -> dict[str, Predictive]:
    """The posterior predictive distribution of every observation site of a model, not draws of it.

    ``p(y | x, data) = mean over draws w ~ q of p(y | x, w)``. The guide and the model run once a draw, and the
    model's likelihood at the site is kept: a density needs no samples.

    Args:
        model, guide: Pyro model and guide. An observation site is one that the guide does not sample; it is predicted
            whether the call gives its value or not.
        *args, **kwargs: their arguments; tensors may be in dicts, lists and tuples. A plate does not limit a
            prediction: there may be more points than ``dataset_size``.
        num_samples: number of draws.
        mode: "weights": each draw is one function. "local": noise of its own for every output element, as in training.
            "mean": the posterior mean of every guide site, the mean network; one draw, unless the model draws
            something too. "moments": one pass of the net, without draws of the weights, that carries the mean and the
            variance of every activation; ``num_samples`` draws of the likelihood's parameters at its end, whose mean
            and variance are exact where those parameters are affine in the outputs of the net, as ``loc`` and
            ``logits`` mostly are.
        batch_size: run this many examples at a time, as in :func:`pyro_vd.posterior_predictive`.
        sites: names of the sites to keep; if empty, all.
        shared_sites, reuse: of mode "local", see :func:`pyro_vd.lrt`.
        on_unknown: of mode "moments", where an operation has no rule: "error", or "sample" to draw its input, once in
            each of ``num_samples`` passes.

    Returns:
        ``{site: Predictive}``. Draws run side by side where ``torch.vmap`` can run the model, as many as fit 32 MiB of
        weights and activations; one by one where not (a model that looks at values, or changes a tensor in place).
        Noise must come from torch or Pyro: a model that draws from NumPy, ``random`` or a generator of its own runs
        one by one where that is noticed (global generators, samples, another result at the same seed). Of a single
        example, mode "weights" draws the output of a layer that sees one row of inputs: the same distribution, by
        fewer random numbers.

    Mode "moments" takes activations for independent Gaussians. It is exact for one and for two linear layers; from the
    third on the covariance between units is dropped, and that between positions of a convolution, between tokens,
    between examples, between branches of a net, and between several uses of a weight. The weights of attention are
    those of the mean. Guide sites that are not weights take their mean (a plain Normal matrix is a weight). Likelihood
    parameters that are functions of one element of an activation (views and functions of each element) share its noise.
    Measured against 2,000 draws: on ReLU nets 50 wide, the standard deviation of the output is within 5 % of theirs to
    depth 10, and 20 to 40 % too small at depth 20 (tanh: within 3 %, and up to 17 % too large); after an average over
    all positions of a convolution, or over the tokens of attention, which share their weights, it is 40 to 50 % too
    small.

    Raises:
        ValueError: unknown mode or site; no observation site; num_samples or batch_size < 1; a likelihood that has
            another family or shape in another draw; batch_size with a guide that has sites inside a plate, or with a
            likelihood that cannot be cut.
            In mode "moments" also an operation without a rule, and weights whose elements share noise
            or have no Gaussian.
        TypeError: a likelihood whose parameters cannot be stacked.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y=None):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(x * pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=y)
        >>> def guide(x, y=None):
        ...     pyro.sample("w", dist.Normal(2.0, 0.1))
        >>> y = predictive_distribution(model, guide, torch.ones(5), num_samples=3)["y"]
        >>> y
        Predictive('y': Normal, 3 draws, batch (5,), event ())
        >>> low, high = y.interval(0.9)

    See also:
        :class:`pyro_vd.Predictive`, :func:`pyro_vd.posterior_predictive`, :func:`pyro_vd.metrics.accuracy`.
    """
    check_programs(model, guide)
    check_whole("predictive_distribution", guide.named_parameters() if isinstance(guide, nn.Module) else ())
    keep_plain_buffers(model, guide)
    check_prediction((*MODES, "moments"), mode, num_samples, batch_size)
    check_on_unknown(mode, on_unknown)
    by_rows = guide_of_one_row(guide, mode, args, kwargs)
    if mode == "moments":
        guide = gaussian_weights(guide, on_unknown)
    elif mode == "mean":
        guide = posterior_mean(guide)
    guide = EstimatorMessenger("local" if mode == "local" else "shared", shared_sites, reuse)(guide)
    pieces, lengths = pieces_of(args, kwargs, batch_size)
    run = DrawsOfLikelihoods(
        model, guide, (args, kwargs), pieces, lengths, mode != "local", mode == "mean", by_rows, sites=sites
    )
    with Prediction(), seed_watched(), data_explained("predictive_distribution", args, kwargs):
        kept = run.of_moments(num_samples) if mode == "moments" else run.draws(num_samples, mode == "mean")
    advice = _OF_MOMENTS if mode == "moments" else ""
    return {site: Predictive(_built(site, *parts, advice), site) for site, parts in kept.items()}


def _built(site: str, structure: Structure, tensors: list[Tensor], advice: str) -> Any:
    try:
        return structure.build(tensors)
    except ValueError as error:  # of a parameter outside its domain
        raise ValueError(f"site {site!r}: {error}{advice}") from error


class DrawsOfLikelihoods(Blocks):
    """The likelihoods of a model at draws of its guide.

    Args:
        sites: names to keep; all if empty. Others are those of :class:`Blocks`.
    """

    def __init__(self, *others: Any, sites: Collection[str]):
        super().__init__(*others, caller="predictive_distribution")
        self.sites = sites
        self.used: list[str] = []  # predicted sites whose value the model goes on to use

    def of_moments(self, number: int) -> Parts:
        """The likelihoods at ``number`` draws of what a guide of :func:`gaussian_weights` makes of their parameters."""
        blocks: list[Parts] = []
        if self._pass_of_moments(number, blocks):  # an operation drew its input: each draw takes a pass of its own
            blocks.clear()
            for _ in range(number):
                self._pass_of_moments(1, blocks)
        return joined(blocks, 0, self._together)

    def _pass_of_moments(self, number: int, blocks: list[Parts]) -> bool:
        values = self._guide_values(self.call)
        found = []
        with pyro.validation_enabled(False):
            for piece, length in zip(self.pieces, self.lengths, strict=True):
                sites = self._run(values, piece)
                if self.used:
                    raise ValueError(
                        f"site {self.used[0]!r}: expected a model that returns what it predicts, got one that goes on "
                        'to use it, which has no value in one pass of moments; write mode="weights"'
                    )
                parts: Parts = {}
                seen: Any = []
                for name, site in sites.items():
                    likelihood = _likelihood(site)
                    structure, own = take_apart(likelihood)
                    parts[name] = structure, [drawn(tensor, number, seen) for tensor in own]
                    self.along[name] = is_along(name, likelihood, length) and self.along.get(name, True)
                found.append(parts)
        blocks.append(self._joined(found))
        return any(value.sampled for value in values.values() if isinstance(value, GaussianTensor))

    def _run(self, values: dict[str, Any] | None, piece: tuple[tuple, dict]) -> dict[str, Any]:
        """The messages of the observation sites."""
        if values is None:  # of mode "local", where a weight that is used twice may be drawn once in a second run
            return run_coherently(lambda: self._run(self._guide_values(piece), piece))
        args, kwargs = piece
        run = self._model_run(values, args, kwargs)
        predicted = {
            name: site
            for name, site in run.nodes.items()
            if site["type"] == "sample" and name not in values and not isinstance(site["fn"], Unit)
            and not site_is_subsample(site) and not site["infer"].get("_deterministic")
        }  # fmt: skip
        return {name: predicted[name] for name in wanted_sites(self.sites, predicted, values)}

    def _model_run(self, values: dict[str, Any], args: tuple, kwargs: dict) -> Any:
        """A trace of the model at the values; what it predicts is sampled only where it goes on to use it."""
        if not self.used:
            try:
                run = poutine.trace(Given(values, self.used)(self.model)).get_trace(*args, **kwargs)
                if not self.used:  # which a model that catches exceptions may hide
                    return run
            except ValueIsUsed:
                pass
        return poutine.trace(Given(values)(self.model)).get_trace(*args, **kwargs)

    def _parts_of_first(self, run: dict[str, Any], length: int) -> Parts:
        parts: Parts = {}
        for name, site in run.items():
            likelihood = _likelihood(site)
            parts[name] = taken_apart(name, likelihood)
            self.along[name] = is_along(name, likelihood, length) and self.along.get(name, True)
        return parts

    def _parts(self, run: dict[str, Any]) -> dict[str, tuple[Structure, list[Tensor]]]:
        return {name: take_apart(_likelihood(site)) for name, site in run.items()}

    def _together(self, tensors: Sequence[Tensor], dim: int) -> Tensor:
        return stacked(tensors, torch.cat, dim)


def _likelihood(site: Any) -> Any:
    fn, mask = site["fn"], site["mask"]
    return fn if mask is None or mask is True else fn.mask(mask)
