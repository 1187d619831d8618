"""What every distribution of a random weight has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_vd.estimators import ESTIMATORS, WeightNoise


class WeightPosterior(TorchDistribution):
    """Abstract: the distribution of a random weight.

    Subclasses have ``loc``, ``variance`` (elementwise, of the weight), ``log_alpha`` and ``noise()``.
    Parameter values are not validated at construction, since that is a host synchronisation a step;
    :class:`pyro_vd.TraceVD_ELBO` reports NaN and infinity by site.
    """

    arg_constraints: Any = {}
    has_rsample = True
    estimators: tuple[str, ...] = ESTIMATORS
    loc: Tensor

    @property
    @abstractmethod
    def log_alpha(self) -> Tensor:
        """Natural log of the noise ratio."""

    @abstractmethod
    def noise(self) -> WeightNoise:
        """The parts of the weight's randomness, for :mod:`pyro_vd.estimators`."""

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each weight."""
        return self.variance.sqrt()

    @property
    def dropout_rate(self) -> Tensor:
        """Probability of dropping that gives the same noise ratio, ``alpha / (1 + alpha)``."""
        return torch.sigmoid(self.log_alpha)


def broadcast_parameters(owner: str, loc: Tensor, name: str, value: Any) -> tuple[Tensor, Tensor]:
    """``loc`` in the shape of both, and the parameter ``name`` as it came: one value may serve many weights.

    Raises an error that names ``owner`` where they are no floating point tensors that broadcast.
    """
    if not isinstance(loc, Tensor) or not loc.is_floating_point():
        got = loc.dtype if isinstance(loc, Tensor) else type(loc).__name__
        raise TypeError(f"{owner}: expected loc to be a floating point tensor, got {got}; write loc.float()")
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=loc.dtype, device=loc.device)
    if not value.is_floating_point():
        raise TypeError(f"{owner}: expected {name} to be floating point, got {value.dtype}; write {name}.float()")
    if loc.shape == value.shape:
        return loc, value
    try:
        shape = torch.broadcast_shapes(loc.shape, value.shape)
    except RuntimeError:
        raise ValueError(
            f"{owner}: expected {name} to broadcast with loc of shape {tuple(loc.shape)}, got shape "
            f"{tuple(value.shape)}; give {name} the shape of loc, or size 1 where it is shared"
        ) from None
    return loc.expand(shape), value


def prior_of_weight(q: WeightPosterior, p: Independent, *known: type) -> Any:
    """The prior of the elements of a weight whose posterior is one event, for its KL rule.

    Raises ValueError where it is none of the ``known`` types, or does not cover the whole weight.
    """
    whole = p.reinterpreted_batch_ndims == len(q.event_shape)
    if whole and isinstance(p.base_dist, known):
        return p.base_dist
    names = " or ".join(one.__name__ for one in known)
    extent = "" if whole else f" with .to_event({p.reinterpreted_batch_ndims})"
    raise ValueError(
        f"expected a prior with a KL rule for {type(q).__name__}, {names} with .to_event({len(q.event_shape)}), got "
        f"{type(p.base_dist).__name__}{extent}; change the prior of the model, or the guide"
    )
