"""Measuring a gradient estimator: the variance of its gradient, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vd.common.examples import number_of_examples, take_examples


@dataclass(frozen=True)
class GradientVariance:
    """What :func:`gradient_variance` returns. Prints as a table.

    Attributes:
        parameters: for each parameter, the variance of its gradient over draws, elementwise, in the shape
            of the parameter; for a loss in nats.
        sites: names of the sites of the guide.
        num_draws: number of gradients it is from; its relative standard error is near ``sqrt(2 / num_draws)``
            for one element, and far less for a mean over many.
    """

    parameters: dict[str, Tensor]
    sites: tuple[str, ...]
    num_draws: int

    def per_parameter(self) -> dict[str, float]:
        """Mean over the elements of each parameter."""
        return {name: variance.mean().item() for name, variance in self.parameters.items()}

    def per_layer(self) -> dict[str, float]:
        """Mean over the elements of all parameters of a layer: those of one site up to its last dot."""
        layers: dict[str, list[Tensor]] = {}
        for name, variance in self.parameters.items():
            site = next((site for site in self.sites if name.endswith(site)), name)
            layers.setdefault(site.rpartition(".")[0] or site, []).append(variance.flatten())
        return {layer: torch.cat(variances).mean().item() for layer, variances in layers.items()}

    def __str__(self) -> str:
        rows = self.per_parameter()
        width = max(map(len, rows))
        lines = [f"{'parameter':<{width}}  {'elements':>9}  mean variance over {self.num_draws} draws"]
        lines += [f"{n:<{width}}  {self.parameters[n].numel():>9,}  {value:.4e}" for n, value in rows.items()]
        return "\n".join(lines)


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
    """
    if num_draws < 2:
        raise ValueError(f"num_draws: expected at least 2 to have a variance, got {num_draws}")
    if batch_size is not None and batch_size < 1:
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
        parameters = {name: node["value"].unconstrained() for name, node in capture.trace.nodes.items()}
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
