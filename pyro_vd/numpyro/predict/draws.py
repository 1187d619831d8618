"""Posterior predictive, one weight draw in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.handlers import replay, seed, substitute, trace

from pyro_vd.common.predictions import MODES, check_cut, check_prediction, pieces_of
from pyro_vd.numpyro._numpyro import Prediction
from pyro_vd.numpyro.arguments import check_call, check_finite, compiled
from pyro_vd.numpyro.checks import check_parameter_sites, latent_sites
from pyro_vd.numpyro.handlers import EstimatorMessenger, Reuse, SharedSites, posterior_mean
from pyro_vd.numpyro.predict.programs import program_of
from pyro_vd.numpyro.predict.sites import check_same, chosen_sites, names_of, same_sites
from pyro_vd.numpyro.weights import run_counted


@compiled("posterior_predictive")
def posterior_predictive(
    rng_key: Array,
    params: Mapping[str, Any],
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int,
    mode: str = "weights",
    batch_size: int | None = None,
    return_sites: Collection[str] | str = (),
    shared_sites: SharedSites = (),
    reuse: Reuse = "error",
    **kwargs: Any,
) -> dict[str, Array]:
    """Draws from the posterior predictive distribution of a model, as ``numpyro.infer.Predictive`` gives them.

    Args:
        rng_key: a random key.
        params: parameters of model and guide, as ``svi.get_params`` returns them; for a net with a state together
            with ``svi_state.mutable_state``.
        model, guide: NumPyro model and guide. The model is called without its observed data (leave ``y`` out).
        *args, **kwargs: their arguments.
        num_samples: number of draws.
        mode: "weights": each draw is one function, its weights drawn once (use it for joint
            predictions, function plots, disagreement). "local": noise of its own for every output element, as in
            training; two nearly equal inputs come out unrelated. "mean": the posterior mean of every guide
            site, the mean network.
        batch_size: run this many examples at a time. Arrays among the arguments whose first axis is as long
            as that of the first one are cut along it. In modes "weights" and "mean" a draw stays the
            same draw over the pieces. A value that is not along the examples must be the same in all pieces.
        return_sites: names of the sites to return, one or several, "_RETURN" for what the model returns; if empty,
            all but the guide's and those that are observed.
        shared_sites, reuse: in mode "local", see :func:`pyro_vd.numpyro.lrt`.

    Returns:
        ``{site: values}``, shape ``(num_samples, *shape of the site)``. Memory grows with the outputs
        alone: one draw of the weights is held at a time.
        The model is traced in every call, and compiled where its program is a new one: noise must come from NumPyro or
        ``jax.random``, a number of NumPy is one constant.

    Raises:
        ValueError: unknown mode or site; num_samples or batch_size < 1; batch_size with nothing to cut, or with
            a guide that has sites inside a plate; no random key; ``params`` that miss a parameter or have one more;
            a model that observes all its sites (called with its labels); in mode "local", a weight used twice; with
            batch_size, a site that is not in every piece, or has no axis of examples and differs between pieces.
        TypeError: an argument of a wrong type.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> def model(x):
        ...     w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        ...     return numpyro.sample("y", dist.Normal(x * w, 1.0).to_event(1))
        >>> def guide(x):
        ...     numpyro.sample("w", dist.Normal(2.0, 0.1))
        >>> posterior_predictive(jax.random.key(0), {}, model, guide, jnp.ones(5), num_samples=3)["y"].shape
        (3, 5)

    See also:
        :func:`pyro_vd.numpyro.predictive_distribution`, :func:`pyro_vd.numpyro.to_arviz`.
    """
    owner = "posterior_predictive"
    params = dict(check_finite(owner, check_call(owner, rng_key, params, model, guide, args, kwargs)))
    check_prediction(MODES, mode, num_samples, batch_size)
    wanted = names_of(return_sites)
    guide = posterior_mean(guide) if mode == "mean" else guide
    guide = EstimatorMessenger(guide, "local" if mode == "local" else "shared", shared_sites, reuse)
    pieces, lengths = pieces_of(args, kwargs, batch_size)
    with Prediction():
        first = trace(substitute(seed(guide, rng_key), data=params)).get_trace(*args, **kwargs)
    check_parameter_sites(owner, params, first)
    latent = dict(latent_sites(first))
    if mode != "local":
        check_cut([name for name, site in latent.items() if site["cond_indep_stack"]], len(pieces), owner)

    def draw(key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        drawn = trace(substitute(seed(guide, key), data=params)).get_trace(*args, **kwargs)
        return {name: site["value"] for name, site in latent_sites(drawn)}

    def run(key: Array, drawn: dict[str, Any] | None, args: tuple, kwargs: dict) -> dict[str, Any]:
        guide_key, model_key = jax.random.split(key)
        drawn = draw(guide_key, args, kwargs) if drawn is None else drawn

        def run_model(drawn: Mapping[str, Any]) -> tuple[Any, Any]:
            values: Any = {name: {**latent[name], "value": value} for name, value in drawn.items()}
            with trace() as ran:
                returned = substitute(replay(seed(model, model_key), values), data=params)(*args, **kwargs)
            return ran, returned

        ran, returned = run_counted(run_model, drawn)
        check_parameter_sites(owner, params, first, ran)
        return chosen_sites(ran, returned, wanted, set(first))

    drawer, runner = program_of(draw), program_of(run)
    samples: list[dict[str, Array]] = []
    with Prediction():
        for key in jax.random.split(rng_key, num_samples):
            draw_key, *keys = jax.random.split(key, 1 + len(pieces))
            drawn = None if mode == "local" else drawer(draw_key, args, kwargs)
            runs = [runner(key, drawn, *piece) for key, piece in zip(keys, pieces, strict=True)]
            samples.append(_join(runs, lengths))
    return {name: jnp.stack([sample[name] for sample in samples]) for name in samples[0]}


def _join(pieces: list[dict[str, Array]], lengths: list[int]) -> dict[str, Array]:
    """Put the pieces of every site together along the axis of examples; a site without it is in every piece."""
    joined = {}
    for name in same_sites(pieces):
        values = [piece[name] for piece in pieces]
        along = all(v.ndim > 0 and v.shape[0] == n for v, n in zip(values, lengths, strict=True))
        if not along:
            check_same(name, [[value] for value in values])
        joined[name] = jnp.concatenate(values) if len(values) > 1 and along else values[0]
    return joined
