"""Measuring a gradient estimator: the variance of its gradient, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vd._pyro import parameters_met
from pyro_vd.arguments import check_programs
from pyro_vd.common.examples import number_of_examples, take_examples
from pyro_vd.common.options import check_count, shown
from pyro_vd.common.reports import GradientVariance
from pyro_vd.rollback import undone


@undone()
def gradient_variance(
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
        model, guide: Pyro model and guide.
        loss: a ``pyro.infer.ELBO`` with ``differentiable_loss``, such as :class:`pyro_vd.TraceVD_ELBO`.
        *args, **kwargs: arguments of model and guide.
        num_draws: number of gradients, >= 2.
        batch_size: draw a minibatch of that many examples, with replacement, for every gradient; the arguments
            are the whole data set then. None: always all arguments, so that only the noise varies.

    Returns:
        The unbiased sample variance of every element of every gradient (a :class:`GradientVariance`). Parameters
        are not changed and no gradient is added to them.

    Raises:
        ValueError: num_draws < 2; batch_size < 1.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro_vd as vd
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
        ...     pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(2), obs=torch.zeros(len(x), 1))
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.ones(3, 1))
        ...     pyro.sample("w", vd.DropoutNormal(loc, log_sigma2=-2.0).to_event(2))
        >>> variance = gradient_variance(model, guide, vd.TraceVD_ELBO(), torch.ones(5, 3), num_draws=10)
        >>> variance.parameters["loc"].shape
        torch.Size([3, 1])

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.2 and table 1.

    See also:
        :class:`pyro_vd.GradientVariance`, :func:`pyro_vd.lrt`, :func:`pyro_vd.flipout`.
    """
    check_programs(model, guide)
    if isinstance(loss, type) or not hasattr(loss, "differentiable_loss"):
        raise TypeError(
            f"loss: expected an ELBO with differentiable_loss, got {shown(loss)}; write pyro_vd.TraceVD_ELBO()"
        )
    if check_count("num_draws", num_draws) < 2:
        raise ValueError(f"num_draws: expected at least 2 to have a variance, got {num_draws}")
    if batch_size is not None and check_count("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    means: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    guide_trace = poutine.block(poutine.trace(guide).get_trace)(*args, **kwargs)
    sites = tuple(name for name, _ in guide_trace.iter_stochastic_nodes())
    for draw in range(1, num_draws + 1):
        step_args, step_kwargs = args, kwargs
        if batch_size is not None:
            index = torch.randint(number_of_examples(args, kwargs), (batch_size,))
            step_args, step_kwargs = take_examples(args, kwargs, index)
        capture: Any
        with poutine.trace(param_only=True) as capture:
            value = loss.differentiable_loss(model, guide, *step_args, **step_kwargs)
        parameters = parameters_met(capture.trace)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        # Welford's update, in float64: the variance of late gradients is far below their square.
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            gradient = gradient.double()
            mean = means.setdefault(name, torch.zeros_like(gradient))
            step = gradient - mean
            mean += step / draw
            squares[name] = squares.get(name, 0.0) + step * (gradient - mean)
    return GradientVariance({name: total / (num_draws - 1) for name, total in squares.items()}, sites, num_draws)
