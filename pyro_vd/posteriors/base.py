"""What every distribution of a random weight has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints

from pyro_vd.common.options import check_number, shown
from pyro_vd.estimators import ESTIMATORS, WeightNoise


class WeightPosterior(TorchDistribution):
    """Abstract: the distribution of a random weight.

    Subclasses have ``loc``, ``variance`` (elementwise, of the weight), ``log_alpha`` and ``noise()``.
    The values of tensors are validated at construction with ``validate_args=True`` alone, since that is a host
    synchronisation a step; :class:`pyro_vd.TraceVD_ELBO` reports NaN and infinity by site.

    Attributes:
        estimators: those under which the family has a form.
        arguments: names of the tensors among the arguments of the constructor; attributes too.
        options: names of its other arguments; attributes too.
    """

    has_rsample: Any = True
    estimators: tuple[str, ...] = ESTIMATORS
    arguments: tuple[str, ...] = ("loc",)
    options: tuple[str, ...] = ()
    loc: Tensor

    def __init__(self, batch_shape: torch.Size, event_shape: torch.Size, validate_args: bool | None = None):
        super().__init__(batch_shape, event_shape, validate_args=False)
        self._validate(validate_args)

    def _validate(self, validate_args: bool | None) -> None:
        """Whether values are validated from here on; those of the parameters now."""
        if validate_args is None:
            self.__dict__.pop("_validate_args", None)  # Pyro's setting at construction
            return
        self._validate_args = validate_args
        for name, value in self.given().items() if validate_args else ():
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                raise ValueError(
                    f"{type(self).__name__}: expected {name} to be finite, got {bad} NaN or infinite of "
                    f"{value.numel()} values; write torch.nan_to_num({name}), or find where they come from"
                )

    def given(self) -> dict[str, Tensor]:
        """The tensors that the distribution was made of, by the names of the constructor."""
        return {name: getattr(self, f"_{name}" if hasattr(self, f"_{name}") else name) for name in self.arguments}

    def __repr__(self) -> str:
        shapes = [f"{name}: {tuple(value.shape)}" for name, value in self.given().items()]
        return f"{type(self).__name__}({', '.join([*shapes, *(f'{o}={getattr(self, o)!r}' for o in self.options)])})"

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
    """``loc`` in the shape of both, and the parameter ``name``: one value may serve many weights.

    Raises an error that names ``owner`` where they are not floating point tensors that broadcast.
    """
    check_tensor(owner, "loc", loc)
    value = as_tensor(owner, name, value, loc)
    if value.dim() == 0:
        value = value.to(loc)  # a scalar follows the weight that it is spread over
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


def check_tensor(owner: str, name: str, value: Any) -> Tensor:
    """The tensor, or TypeError unless it is one of floating point."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{owner}: expected {name} to be a floating point tensor, got {got}; write {name}.float() of a tensor, "
            f"torch.as_tensor({name}).float() of anything else"
        )
    return value


def as_tensor(owner: str, name: str, value: Any, like: Tensor) -> Tensor:
    """A parameter as a tensor: as it came, or a finite number in the dtype and on the device of ``like``."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{owner}: expected {name} to be floating point, got {value.dtype}; write {name}.float()")
        return value
    if isinstance(value, (list, tuple)):
        try:
            return torch.tensor(value, dtype=like.dtype, device=like.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{owner}: expected {name} to be a number or a tensor, got {shown(value)}") from None
    if getattr(value, "ndim", 0) > 0:
        raise TypeError(
            f"{owner}: expected {name} to be a number or a torch tensor, got {shown(value)}; write "
            f"torch.as_tensor({name}, dtype=torch.float32)"
        )
    return torch.tensor(check_number(name, value, owner=owner), dtype=like.dtype, device=like.device)


def real_arguments(*names: str) -> dict[str, constraints.Constraint]:
    """The ``arg_constraints`` of parameters on the real line."""
    return dict.fromkeys(names, constraints.real)


def sum_over_elements(values: Tensor, free: Tensor | None) -> Tensor:
    """The sum of one value per element of a weight over those that are free."""
    return values.sum() if free is None else torch.where(free, values, 0.0).sum()


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
