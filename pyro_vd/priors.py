"""Log-uniform priors: ImproperLogUniform, p(w) ~ 1 / |w|, and its proper truncation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.runtime import effectful
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vd._torch import has_values
from pyro_vd.common.options import as_number, shown
from pyro_vd.common.shapes import check_sizes, check_value_shape, expanded_shape, sample_shape_of
from pyro_vd.scoring import deferred_log_prob


class ImproperLogUniform(TorchDistribution):
    """The improper log-uniform prior on the real line, ``log p(w) = -log |w|`` up to a constant.

    It cannot be sampled and has no normaliser; its purpose is an analytic KL to a Gaussian weight
    (:func:`pyro_vd.kl.kl_log_uniform`), which has no dependence on the scale of the weight. With a
    likelihood it gives in general no proper posterior (Hron, Matthews, Ghahramani 2018,
    arXiv:1807.01969): report held-out likelihood, never compare its bound across models.

    Args:
        batch_shape: shape of independent weights; use ``.expand(shape).to_event(n)`` as for any Pyro
            distribution.

    Raises:
        ValueError: from ``sample``/``rsample``: there is nothing to draw from.

    Example:
        >>> ImproperLogUniform().expand([2]).log_prob(torch.tensor([1.0, 0.5]))
        tensor([-0.0000, 0.6931])

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 4.2.

    See also:
        :class:`pyro_vd.TruncatedLogUniform`, :func:`pyro_vd.kl.kl_log_uniform`, :class:`pyro_vd.DropoutNormal`.
    """

    arg_constraints: Any = {}
    support: Any = constraints.real
    has_rsample = False

    def __init__(self, batch_shape: Sequence[int] = (), *, validate_args: bool | None = None):
        cure = "ImproperLogUniform(), which a BayesianModule expands, or ImproperLogUniform((out, in))"
        sizes = check_sizes("ImproperLogUniform", "batch_shape", batch_shape, cure)
        super().__init__(torch.Size(sizes), validate_args=validate_args)

    def __repr__(self) -> str:
        return f"ImproperLogUniform(batch_shape: {tuple(self.batch_shape)})"

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ImproperLogUniform:
        if self.batch_shape or type(batch_shape) is not torch.Size or min(batch_shape, default=0) < 0:
            batch_shape = torch.Size(expanded_shape(self, batch_shape))
        new = ImproperLogUniform.__new__(ImproperLogUniform)  # of a parameter's own shape, in every step
        super(ImproperLogUniform, new).__init__(batch_shape, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """``-log |value|``, not normalised, in nats; plus infinity at 0."""
        if (deferred := deferred_log_prob(self, value)) is not None:
            return deferred
        check_value_shape(self, value.shape)
        if self._validate_args:
            self._validate_sample(value)
        log_prob = -value.abs().log()
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if _only_shapes_count():
            return torch.ones((*sample_shape_of(self, sample_shape), *self.batch_shape))
        raise ValueError(
            "ImproperLogUniform: expected a distribution that can be sampled, got the improper density 1 / |w|, "
            "which has no draws (no prior predictive, no MCMC start, and the guide must cover the site). Write "
            "pyro_vd.TruncatedLogUniform(low, high), Normal or StudentT as the prior instead, or give the site a "
            "guide such as pyro_vd.guides.AutoSparseVD(model); another automatic guide of the other sites, or of this "
            "one, goes beside it in pyro_vd.guides.mixed_guide(model, ...)."
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample(sample_shape)


class TruncatedLogUniform(TorchDistribution):
    """The proper log-uniform prior on ``low <= |w| <= high``, sign uniform.

    ``p(w) = 1 / (2 * |w| * log(high / low))``.

    Args:
        low: smallest size of a weight, > 0; broadcasts with ``high``.
        high: largest size of a weight, > low.

    Raises:
        ValueError: unless ``0 < low < high``.

    Example:
        >>> TruncatedLogUniform(1.0, math.e).log_prob(torch.tensor(1.0)).exp()
        tensor(0.5000)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 4.2 ("uniform on the log-scale"); made proper as
        Neklyudov et al. 2017 do, arXiv:1705.07283, section 3.2.

    See also:
        :class:`pyro_vd.ImproperLogUniform`.
    """

    arg_constraints: Any = {"low": constraints.positive, "high": constraints.positive}
    # Not an interval: both signs. The density outside the shell is 0, so log_prob is -inf there.
    support: Any = constraints.real
    has_rsample = True

    def __init__(self, low: Tensor | float, high: Tensor | float, *, validate_args: bool | None = None):
        like = next((one for one in (low, high) if isinstance(one, Tensor) and one.is_floating_point()), None)
        self.low, self.high = torch.broadcast_tensors(_bound("low", low, like), _bound("high", high, like))
        if validate_args is not False and not self.low.is_meta:
            good = (self.low > 0) & (self.low < self.high) & torch.isfinite(self.high)
            if not bool(good.all()):
                raise ValueError(
                    f"TruncatedLogUniform: expected 0 < low < high, got low={low!r}, high={high!r}; low and high are "
                    "finite sizes |w|, the sign is free"
                )
        super().__init__(self.low.shape, validate_args=False)
        self.__dict__.pop("_validate_args")  # Pyro's setting at construction, for the values of log_prob
        if validate_args is not None:
            self._validate_args = validate_args

    def __repr__(self) -> str:
        return f"TruncatedLogUniform(low: {tuple(self.low.shape)}, high: {tuple(self.high.shape)})"

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.low)

    @property
    def variance(self) -> Tensor:
        """``(high**2 - low**2) / (2 * log(high / low))``."""
        return (self.high.square() - self.low.square()) / (2 * self._log_ratio)

    @property
    def _log_ratio(self) -> Tensor:
        return (self.high / self.low).log()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TruncatedLogUniform:
        batch_shape = expanded_shape(self, batch_shape)
        low, high = self.low.expand(batch_shape), self.high.expand(batch_shape)
        return TruncatedLogUniform(low, high, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Normalised, in nats; -inf outside ``low <= |value| <= high``."""
        check_value_shape(self, value.shape)
        if self._validate_args:
            self._validate_sample(value)
        size = value.abs()
        inside = (size >= self.low) & (size <= self.high)
        safe = torch.where(inside, size, self.high)
        density = -safe.log() - (2 * self._log_ratio).log()
        return torch.where(inside, density, -math.inf)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape_of(self, sample_shape)))
        return self.icdf(torch.rand(shape, dtype=self.low.dtype, device=self.low.device))

    def cdf(self, value: Tensor) -> Tensor:
        """P(w <= value): 1/2 between -low and low."""
        size = torch.minimum(torch.maximum(value.abs(), self.low), self.high)
        return 0.5 + 0.5 * torch.sign(value) * (size / self.low).log() / self._log_ratio

    def icdf(self, value: Tensor) -> Tensor:
        """The w with P(W <= w) = value; at value = 1/2, where every w in [-low, low] is one, low."""
        folded = 2 * value - 1
        size = self.low * (self._log_ratio * folded.abs()).exp()
        size = torch.minimum(torch.maximum(size, self.low), self.high)
        return torch.where(folded < 0, -size, size)


def _bound(name: str, value: Any, like: Tensor | None) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    number = as_number(value)
    if number is None:
        raise TypeError(
            f"TruncatedLogUniform: expected {name} to be a number or a floating point tensor, got {shown(value)}; "
            "write TruncatedLogUniform(1e-4, 10.0)"
        )
    return torch.tensor(number) if like is None else like.new_tensor(number)


@effectful(type="get_init_messengers")
def _init_messengers() -> list | None:
    """Pyro's handlers that give sites a first value; each adds itself to the list."""
    return None


def _only_shapes_count() -> bool:
    """Whether Pyro runs the model for the shapes of its sites alone.

    ``pyro.infer.Predictive`` does so before it looks at the guide's draws: log_probs off, values from an
    initialiser. A prior predictive has no initialiser, MCMC has log_probs, and for both ``sample`` raises.
    """
    return poutine.get_mask() is False and bool(_init_messengers())


def check_no_nan(owner: str, prior: Any, kind: str | None = None) -> None:
    """ValueError for a prior with NaN in a parameter, which one made with ``validate_args=False`` may have."""
    kind = type(prior).__name__ if kind is None else kind
    for name, value in vars(prior).items():
        if isinstance(value, Distribution):  # under to_event, of a mixture
            check_no_nan(owner, value, kind)
        elif isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta and has_values():
            if bad := int(torch.isnan(value).sum()):
                raise ValueError(
                    f"{owner}: expected a prior without NaN, got {kind} whose {name.strip('_')} holds "
                    f"{bad} NaN of {value.numel()} values; give it finite parameters, as Normal(0.0, 1.0) has"
                )
