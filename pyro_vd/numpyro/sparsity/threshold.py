"""The threshold as a choice: error and size of the pruned net over several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from pyro_vd.common.options import check_callable
from pyro_vd.common.threshold import SHARES, ThresholdCurve, build_curve
from pyro_vd.numpyro.module import BayesianModule
from pyro_vd.numpyro.sparsity.masks import DEFAULT_THRESHOLD, Posteriors, keep_masks, posteriors_of
from pyro_vd.numpyro.sparsity.prune import prune


def threshold_curve(
    bnn: BayesianModule,
    guide: Posteriors,
    evaluate: Callable[[Any], float | Mapping[str, float]],
    thresholds: Sequence[float] | None = None,
    *,
    params: Mapping[str, Any],
) -> ThresholdCurve:
    """Prune at several thresholds and evaluate each net, the unpruned one among them.

    Choose on data that neither training nor the final test has seen.

    Args:
        bnn: the module of the model.
        guide: a guide of :mod:`pyro_vd.guides.numpyro`, or the dict that its ``posteriors(params)`` or
            :func:`weight_posteriors` returns.
        evaluate: takes a pruned net, as :func:`prune` returns it, to its error or loss on validation data, lower is
            better; or to a mapping of several numbers, the "error" among them.
        thresholds: of ``log_alpha``, natural log. None: 3, and those that prune 10 % to 99.8 % of the weights.
        params: the parameters, as ``svi.get_params`` returns them.

    Returns:
        A :class:`ThresholdCurve`: ``.rows``, ``.choose(tolerance)``, ``.plot()``; it prints as a table.

    Raises:
        ValueError: an evaluation that is NaN, or has no "error"; no thresholds, or one that is NaN.
        TypeError: an evaluation that is no function, or does not return a number.

    Example:
        >>> import equinox as eqx, jax
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> from pyro_vd.numpyro.priors import ImproperLogUniform
        >>> net = eqx.nn.Linear(3, 1, use_bias=False, key=jax.random.key(0))
        >>> bnn = BayesianModule(net, ImproperLogUniform())
        >>> guide = {"net.weight": DropoutNormal(jnp.array([[2.0, 0.5, 0.1]]), log_sigma2=0.0)}
        >>> curve = threshold_curve(bnn, guide, lambda net: 2.7 - net(jnp.ones(3))[0], [-2, 1, 3], params={})
        >>> curve.choose(tolerance=0.2).log_alpha_threshold
        3.0

    See also:
        :class:`pyro_vd.numpyro.ThresholdCurve`, :func:`pyro_vd.numpyro.prune`.
    """
    check_callable("evaluate", evaluate, "a function of a net", "write lambda net: error(net)", "threshold_curve")
    posteriors = posteriors_of(guide, params)

    def row_of(threshold: float) -> tuple:
        masks = keep_masks(posteriors, threshold).values()
        net = prune(bnn, posteriors, threshold, params=params)
        return sum(mask.size for mask in masks), sum(int(mask.sum()) for mask in masks), lambda: evaluate(net)

    def default() -> list[float]:
        values = jnp.concatenate([jnp.broadcast_to(q.log_alpha, q.loc.shape).ravel() for q in posteriors.values()])
        ranks = [max(round((1 - share) * len(values)), 1) - 1 for share in SHARES]
        return [DEFAULT_THRESHOLD, *jnp.sort(values)[jnp.array(ranks)].tolist()]

    keep_masks(posteriors)  # for its checks, before any pruning
    return build_curve(row_of, default, thresholds)
