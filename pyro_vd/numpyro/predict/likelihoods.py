"""predictive_distribution: the likelihood of every observation site at many draws, kept as one distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Unit
from numpyro.handlers import replay, seed, substitute, trace

from pyro_vd.common.examples import number_of_examples
from pyro_vd.common.predictions import MODES, check_cut, check_on_unknown, check_prediction, pieces_of, wanted_sites
from pyro_vd.common.structure import Structure
from pyro_vd.numpyro._numpyro import Prediction
from pyro_vd.numpyro.arguments import check_call, check_finite, compiled
from pyro_vd.numpyro.checks import check_parameter_sites, describe, latent_sites
from pyro_vd.numpyro.handlers import EstimatorMessenger, Reuse, SharedSites, posterior_mean
from pyro_vd.numpyro.predict.distribution import Predictive
from pyro_vd.numpyro.predict.one_pass import OnePass
from pyro_vd.numpyro.predict.programs import program_of
from pyro_vd.numpyro.predict.sites import check_same, same_sites
from pyro_vd.numpyro.predict.stacking import is_along, take_apart
from pyro_vd.numpyro.weights import run_counted

# Bytes that the draws of one block may take together, in weights and activations.
BLOCK_BYTES = 2**25
# An operation holds its input, its output and some more.
_TENSORS_AT_A_TIME = 3
# Mode "moments" draws every parameter of a likelihood around its mean.
_OF_MOMENTS = (
    '; a draw of a parameter in mode="moments" may leave its domain where it is taken for a Gaussian; write '
    'mode="weights"'
)


@compiled("predictive_distribution")
def predictive_distribution(
    rng_key: Array,
    params: Mapping[str, Any],
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 100,
    mode: str = "weights",
    batch_size: int | None = None,
    sites: Collection[str] = (),
    shared_sites: SharedSites = (),
    reuse: Reuse = "error",
    on_unknown: str = "error",
    **kwargs: Any,
) -> dict[str, Predictive]:
    """The posterior predictive distribution of every observation site of a model, not draws of it.

    ``p(y | x, data) = mean over draws w ~ q of p(y | x, w)``. The guide and the model run once a draw, and the
    model's likelihood at the site is kept: a density needs no samples.

    Args:
        rng_key: a random key.
        params: parameters of model and guide, as ``svi.get_params`` returns them; for a net with a state together
            with ``svi_state.mutable_state``.
        model, guide: NumPyro model and guide. An observation site is one that the guide does not sample; it is
            predicted whether the call gives its value or not.
        *args, **kwargs: their arguments; arrays may be in dicts, lists and tuples. A plate does not limit a
            prediction: there may be more points than ``dataset_size``.
        num_samples: number of draws.
        mode: "weights": each draw is one function. "local": noise of its own for every output element, as in training.
            "mean": the posterior mean of every guide site, the mean network; one draw, unless the model draws
            something too. "moments": one pass of the net, without draws of the weights, that carries the mean and the
            variance of every activation; ``num_samples`` draws of the likelihood's parameters at its end, whose mean
            and variance are exact where those parameters are affine in the outputs of the net, as ``loc`` and
            ``logits`` mostly are.
        batch_size: run this many examples at a time, as in :func:`pyro_vd.numpyro.posterior_predictive`.
        sites: names of the sites to keep; if empty, all.
        shared_sites, reuse: of mode "local", see :func:`pyro_vd.numpyro.lrt`.
        on_unknown: of mode "moments", where an operation has no rule: "error", or "sample" to draw its input, once in
            each of ``num_samples`` passes.

    Returns:
        ``{site: Predictive}``. Draws run side by side (``jax.vmap``), as many as fit 32 MiB of weights and activations.
        The model is traced in every call, and compiled where its program is a new one: noise must come from NumPyro or
        ``jax.random``, a number of NumPy is one constant.

    Mode "moments" takes activations for independent Gaussians, as :func:`pyro_vd.predictive_distribution` does, which
    says what is dropped. It knows products, convolutions, lookups, sums, functions of each element, averages and
    maxima. Divisions by what is random are errors that name the operation: a softmax inside the net (attention) and
    normalisation by statistics of the example (LayerNorm). So are functions of each element with a pole, or without a
    value for some number (``1 / (1 + x)``, ``log``, ``sqrt``): they have no moments.

    Raises:
        ValueError: unknown mode or site; no observation site; num_samples or batch_size < 1; batch_size with a guide
            that has sites inside a plate, or with a likelihood that cannot be cut; no random key.
            In mode "moments" also an operation without a rule, and weights whose elements share noise.
        TypeError: a likelihood whose parameters cannot be stacked.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> def model(x, y=None):
        ...     w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("y", dist.Normal(x * w, 1.0), obs=y)
        >>> def guide(x, y=None):
        ...     numpyro.sample("w", dist.Normal(2.0, 0.1))
        >>> y = predictive_distribution(jax.random.key(0), {}, model, guide, jnp.ones(5), num_samples=3)["y"]
        >>> y
        Predictive('y': Normal, 3 draws, batch (5,), event ())
        >>> low, high = y.interval(0.9)

    See also:
        :class:`pyro_vd.numpyro.Predictive`, :func:`pyro_vd.numpyro.posterior_predictive`.
    """
    owner = "predictive_distribution"
    params = dict(check_finite(owner, check_call(owner, rng_key, params, model, guide, args, kwargs)))
    check_prediction((*MODES, "moments"), mode, num_samples, batch_size)
    check_on_unknown(mode, on_unknown)
    guide = posterior_mean(guide) if mode == "mean" else guide
    guide = EstimatorMessenger(guide, "local" if mode == "local" else "shared", shared_sites, reuse)
    pieces, _ = pieces_of(args, kwargs, batch_size)
    structures: dict[str, tuple[Structure, bool]] = {}

    def guided(key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        return trace(substitute(seed(guide, key), data=params)).get_trace(*args, **kwargs)

    def draw(key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        return {name: site["value"] for name, site in latent_sites(guided(key, args, kwargs))}

    def run(key: Array, values: dict[str, Any] | None, args: tuple, kwargs: dict) -> dict[str, Any]:
        length = 0 if batch_size is None else number_of_examples(args, kwargs)
        guide_key, model_key = jax.random.split(key)
        values = draw(guide_key, args, kwargs) if values is None else values

        def run_model(values: Mapping[str, Any]) -> Any:
            found: Any = {name: {**latent[name], "value": value} for name, value in values.items()}
            return trace(substitute(replay(seed(model, model_key), found), data=params)).get_trace(*args, **kwargs)

        ran = run_counted(run_model, values)
        check_parameter_sites(owner, params, first, ran)
        predicted = {
            name: site["fn"]
            for name, site in ran.items()
            if site["type"] == "sample" and name not in values and not isinstance(site["fn"], Unit)
        }
        kept = {}
        for name in wanted_sites(sites, predicted, values):
            structure, kept[name] = _taken_apart(name, predicted[name])
            along = is_along(name, predicted[name], length) and structures.get(name, (None, True))[1]
            structures[name] = structure, along
        return kept

    with Prediction():
        first = guided(rng_key, args, kwargs)
        check_parameter_sites(owner, params, first)
        latent = dict(latent_sites(first))
        if mode != "local":
            check_cut([name for name, site in latent.items() if site["cond_indep_stack"]], len(pieces), owner)
        if mode == "moments":
            one_pass = OnePass(params, model, first, latent, sites, on_unknown)
            return _of_moments(one_pass, rng_key, num_samples, pieces, batch_size)
        values = [] if mode == "local" else [jnp.asarray(site["value"]) for site in latent.values()]
        weights = sum(value.size * value.dtype.itemsize for value in values)
        one = jax.make_jaxpr(lambda key: run(key, draw(key, args, kwargs), *pieces[0]))(rng_key)
        size = max(1, BLOCK_BYTES // max(1, weights + _TENSORS_AT_A_TIME * _largest(one.jaxpr)))
        structures.clear()
        # A loop: the random numbers of several draws side by side take twice as long to compile, and as long to run.
        drawer = program_of(lambda keys, args, kwargs: jax.lax.map(lambda key: draw(key, args, kwargs), keys))
        runner = program_of(
            lambda keys, values, args, kwargs: jax.vmap(
                lambda key, values: run(key, values, args, kwargs), in_axes=(0, None if values is None else 0)
            )(keys, values)
        )

        def block(keys: Array) -> dict[str, Any]:
            split = jax.vmap(lambda key: jax.random.split(key, 1 + len(pieces)))(keys)
            values = None if mode == "local" else drawer(split[:, 0], args, kwargs)
            found = [runner(split[:, 1 + i], values, *piece) for i, piece in enumerate(pieces)]
            return {name: _joined(name, found, structures[name][1]) for name in same_sites(found)}

        keys = jax.random.split(rng_key, num_samples)
        start = min(2, num_samples) if mode == "mean" else 0
        blocks = [block(keys[:start])] if start else []
        if start == 2 and all(bool((a[0] == a[1]).all()) for a in jax.tree.leaves(blocks[0])):
            blocks, start = [jax.tree.map(lambda a: a[:1], blocks[0])], num_samples
        if left := num_samples - start:
            size = -(-left // -(-left // size))  # blocks of one length are one compiled program: the last is filled up
            keys = jnp.concatenate([keys, keys[:size]])
            found = [block(keys[i : i + size]) for i in range(start, num_samples, size)]
            blocks.append(jax.tree.map(lambda *parts: jnp.concatenate(parts)[:left], *found))
    arrays = jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)
    return {name: Predictive(_built(name, structures[name][0], own), name) for name, own in arrays.items()}


def _of_moments(
    one_pass: OnePass, key: Array, number: int, pieces: list[tuple[tuple, dict]], batch_size: int | None
) -> dict[str, Predictive]:
    """The mixture of the likelihoods at draws of their parameters, after one pass of every piece."""
    lengths = [0 if batch_size is None else number_of_examples(*piece) for piece in pieces]
    keys = jax.random.split(key, len(pieces))
    found = [
        one_pass.draws(key, length, number, args, kwargs)
        for key, length, (args, kwargs) in zip(keys, lengths, pieces, strict=True)
    ]
    kept = one_pass.likelihoods
    joined = {name: _joined(name, found, kept[name][1]) for name in same_sites(found)}
    return {name: Predictive(_built(name, kept[name][0], own, _OF_MOMENTS), name) for name, own in joined.items()}


def _built(site: str, structure: Structure, arrays: list[Array], advice: str = "") -> Any:
    try:
        return structure.build(arrays)
    except ValueError as error:  # of a parameter outside its domain
        raise ValueError(f"site {site!r}: {error}{advice}") from error


def _largest(jaxpr: Any) -> int:
    """Bytes of the largest result among the operations of a program."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "shape")]
        inner = [getattr(parameter, "jaxpr", parameter) for parameter in equation.params.values()]
        sizes += [_largest(one) for one in inner if hasattr(one, "eqns")]
    return max(sizes)


def _taken_apart(name: str, likelihood: Any) -> tuple[Structure, list[Array]]:
    """The likelihood taken apart, after a check that it can be put together again, the draws first."""
    try:
        structure, arrays = take_apart(likelihood)
        again = structure.build([array[None] for array in arrays])
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise TypeError(
            f"site {name!r}: expected a likelihood whose draws can be stacked into one distribution, got "
            f"{describe(likelihood)}: {error}; take a family of numpyro.distributions, or posterior_predictive, which "
            "returns values"
        ) from error
    if (again.batch_shape, again.event_shape) != ((1, *likelihood.batch_shape), tuple(likelihood.event_shape)):
        raise TypeError(
            f"site {name!r}: expected a likelihood that its constructor makes again from its attributes "
            f"{[argument for argument, _ in structure.arguments]}, got {describe(likelihood)}, which then "
            "differs; keep every argument of its constructor as an attribute of that name"
        )
    return structure, arrays


def _joined(name: str, pieces: list[dict[str, list[Array]]], along: bool) -> list[Array]:
    """The pieces of a site as one, the examples along axis 1, after the draws."""
    of_site = [piece[name] for piece in pieces]
    if not along:
        check_same(name, of_site)
    if len(pieces) == 1 or not along:
        return of_site[0]
    return [jnp.concatenate(parts, 1) for parts in zip(*of_site, strict=True)]
