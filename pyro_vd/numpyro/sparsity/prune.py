"""The pruned net: posterior means for weights, zero where the noise is too large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_vd.numpyro.arguments import check_params, check_real, kind_of
from pyro_vd.numpyro.module import BayesianModule
from pyro_vd.numpyro.posteriors import WeightPosterior
from pyro_vd.numpyro.sparsity.masks import DEFAULT_THRESHOLD, Posteriors, Sparsity, keep_masks, posteriors_of


def prune(
    bnn: BayesianModule,
    guide: Posteriors,
    log_alpha_threshold: float = DEFAULT_THRESHOLD,
    *,
    sparsity: Sparsity = None,
    params: Mapping[str, Any],
) -> Any:
    """A plain net with posterior means for weights, zero where ``log_alpha > log_alpha_threshold``.

    Args:
        bnn: the module of the model.
        guide: a guide of :mod:`pyro_vd.guides.numpyro`, or the dict that its ``posteriors(params)`` or
            :func:`weight_posteriors` returns.
        log_alpha_threshold: see :func:`keep_masks`; ``math.inf`` gives the mean network.
        sparsity: the share of the weights to prune in the place of a threshold; see :func:`keep_masks`.
        params: the parameters, as ``svi.get_params`` returns them; for a net with a state together with
            ``svi_state.mutable_state``.

    Returns:
        A net of the library of the one in ``bnn``: no NumPyro, deterministic parameters and state as trained. Of
        linen a module bound to its variables, of a stateful equinox net the pair of module and state.

    Raises:
        ValueError: the guide has no posterior for a weight of ``bnn``, one of another shape, or a mean that is not
            finite; a parameter or the state is not in ``params``, or of another shape; a linen net that was not called
            yet; threshold or share as in :func:`keep_masks`.
        TypeError: ``bnn`` is no BayesianModule.

    Example:
        >>> import equinox as eqx
        >>> from pyro_vd.numpyro.posteriors import DropoutNormal
        >>> from pyro_vd.numpyro.priors import ImproperLogUniform
        >>> net = eqx.nn.Linear(3, 1, use_bias=False, key=jax.random.key(0))
        >>> bnn = BayesianModule(net, ImproperLogUniform())
        >>> q = DropoutNormal(jnp.array([[2.0, 0.1, 1.0]]), log_sigma2=0.0)
        >>> prune(bnn, {"net.weight": q}, params={}).weight
        Array([[2., 0., 1.]], dtype=float32)

    See also:
        :func:`pyro_vd.numpyro.keep_masks`, :func:`pyro_vd.numpyro.threshold_curve`,
        :func:`pyro_vd.numpyro.sparsity_report`.
    """
    if not isinstance(bnn, BayesianModule):
        raise TypeError(
            f"prune: expected bnn to be the BayesianModule of the model, got {kind_of(bnn)}; write prune(bnn, guide, "
            "params=params)"
        )
    check_params("prune", params)
    weights = bnn.weight_names  # raises for a net whose weights are unknown before its first call
    sites = {bnn.site(name) for name in (*bnn.adapted.parameters, "state")}
    unknown = [name for name in params if name.startswith(f"{bnn.name}.") and name not in sites]
    if unknown:
        raise ValueError(
            f"prune: expected params of the net with {sorted(sites)}, got {unknown} as well; are they those of another "
            "net?"
        )
    posteriors = posteriors_of(guide, params)
    masks = keep_masks(posteriors, log_alpha_threshold, sparsity)
    values = {}
    for name, parameter in bnn.adapted.parameters.items():
        site = bnn.site(name)
        if name not in weights:
            values[name] = _given(params, site, jnp.shape(parameter))
        elif site in posteriors:
            values[name] = jnp.where(masks[site], _checked_mean(site, posteriors[site], parameter), 0.0)
        else:
            raise ValueError(
                f"prune: expected a guide with a weight at site {site!r}, got one with {list(posteriors)}; "
                "pass the guide that was trained with this module"
            )
    state = bnn.adapted.state
    if jax.tree.leaves(state):
        given = _given(params, bnn.site("state"))
        bnn.adapted.check_state(bnn.site("state"), given)
        state = given["values"]
    return bnn.adapted.rebuild(values, state)


def _checked_mean(site: str, posterior: WeightPosterior, parameter: Array) -> Array:
    mean = posterior.mean
    if mean.shape != parameter.shape:
        raise ValueError(
            f"prune: site {site!r}: expected a posterior of shape {parameter.shape}, got {mean.shape}; pass the guide "
            "that was trained with this module"
        )
    if not isinstance(mean, jax.core.Tracer) and (count := int((~jnp.isfinite(mean)).sum())):  # type: ignore
        raise ValueError(
            f"prune: site {site!r}: expected finite means, got {count} of {mean.size} that are not; the training of "
            "this guide has failed: look at its loss, and lower the learning rate"
        )
    return mean


def _given(params: Mapping[str, Any], site: str, shape: tuple[int, ...] | None = None) -> Any:
    if site not in params:
        raise ValueError(
            f"params: expected a value for {site!r}, got {sorted(params)}; write svi.get_params(svi_state), and for a "
            "net with a state {**svi.get_params(svi_state), **svi_state.mutable_state}"
        )
    if shape is not None and jnp.shape(params[site]) != shape:
        raise ValueError(
            f"params: expected a value of shape {shape} for {site!r}, got {jnp.shape(params[site])}; pass those "
            "of the guide that was trained with this module"
        )
    if shape is not None:
        check_real(f"parameter {site!r}", "its value", params[site])
    return params[site]
