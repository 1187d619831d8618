"""Measuring a gradient estimator: the variance of its gradient, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from pyro_vd.common.examples import number_of_examples, take_examples
from pyro_vd.common.options import check_count
from pyro_vd.common.reports import GradientVariance
from pyro_vd.numpyro.arguments import check_call, compiled, kind_of
from pyro_vd.numpyro.checks import latent_sites


@compiled("gradient_variance")
def gradient_variance(
    rng_key: Array,
    params: Mapping[str, Any],
    model: Callable,
    guide: Callable,
    loss: Any,
    *args: Any,
    num_draws: int,
    batch_size: int | None = None,
    **kwargs: Any,
) -> GradientVariance:
    """Variance of the gradient of a loss over draws of its noise, and of the minibatch if asked.

    Args:
        rng_key: a random key.
        params: the parameters, as ``svi.get_params`` returns them; for a net with a state together with
            ``svi_state.mutable_state``.
        model, guide: NumPyro model and guide.
        loss: a ``numpyro.infer.elbo.ELBO``, such as :class:`pyro_vd.numpyro.TraceVD_ELBO`.
        *args, **kwargs: arguments of model and guide.
        num_draws: number of gradients, >= 2.
        batch_size: draw a minibatch of that many examples, with replacement, for every gradient; the arguments
            are the whole data set then. None: always all arguments, so that only the noise varies.

    Returns:
        The variance, elementwise for every parameter.

    Raises:
        ValueError: num_draws < 2; batch_size < 1; no random key.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, pyro_vd.numpyro as vd
        >>> def model(x):
        ...     w = numpyro.sample("w", dist.Normal(jnp.zeros((3, 1)), 1.0).to_event(2))
        ...     numpyro.sample("y", dist.Normal(x @ w, 1.0).to_event(2), obs=jnp.zeros((len(x), 1)))
        >>> def guide(x):
        ...     loc = numpyro.param("loc", jnp.ones((3, 1)))
        ...     numpyro.sample("w", vd.DropoutNormal(loc, log_sigma2=-2.0).to_event(2))
        >>> params = {"loc": jnp.ones((3, 1))}
        >>> key, elbo = jax.random.key(0), vd.TraceVD_ELBO()
        >>> variance = gradient_variance(key, params, model, guide, elbo, jnp.ones((5, 3)), num_draws=10)
        >>> variance.parameters["loc"].shape
        (3, 1)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.2 and table 1.

    See also:
        :class:`pyro_vd.numpyro.GradientVariance`, :func:`pyro_vd.numpyro.lrt`, :func:`pyro_vd.numpyro.flipout`.
    """
    params = check_call("gradient_variance", rng_key, params, model, guide, args, kwargs)
    if not isinstance(loss, ELBO):
        raise TypeError(
            f"gradient_variance: expected loss to be an ELBO of NumPyro, got {kind_of(loss)}; write vd.TraceVD_ELBO()"
        )
    elbo: Any = loss
    if check_count("num_draws", num_draws) < 2:
        raise ValueError(f"num_draws: expected at least 2 to have a variance, got {num_draws}")
    if batch_size is not None and check_count("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    seeded = handlers.substitute(handlers.seed(guide, rng_key), data=dict(params))
    sites = tuple(name for name, _ in latent_sites(handlers.trace(seeded).get_trace(*args, **kwargs)))
    # The state of a net (a dict) is given, not trained.
    state = {name: value for name, value in params.items() if isinstance(value, dict)}
    trained = {name: value for name, value in params.items() if name not in state}

    @jax.jit
    def gradient(key: Array) -> dict[str, Array]:
        batch_key, loss_key = jax.random.split(key)
        step_args, step_kwargs = args, kwargs
        if batch_size is not None:
            index = jax.random.randint(batch_key, (batch_size,), 0, number_of_examples(args, kwargs))
            step_args, step_kwargs = take_examples(args, kwargs, index)

        def value(trained: dict[str, Any]) -> Array:
            return elbo.loss(loss_key, {**trained, **state}, model, guide, *step_args, **step_kwargs)

        return jax.grad(value)(trained)

    means: dict[str, Any] = {}
    squares: dict[str, Any] = {}
    for draw, key in enumerate(jax.random.split(rng_key, num_draws), 1):
        # Welford's update, in float64: the variance of late gradients is far below their square.
        for name, value in gradient(key).items():
            value = np.asarray(value, np.float64)
            mean = means.setdefault(name, np.zeros_like(value))
            step = value - mean
            mean += step / draw
            squares[name] = squares.get(name, 0.0) + step * (value - mean)
    return GradientVariance({name: total / (num_draws - 1) for name, total in squares.items()}, sites, num_draws)
