"""Log-uniform priors: ImproperLogUniform, p(w) ~ 1 / |w|, and its proper truncation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from pyro_vd.common.options import shown
from pyro_vd.common.shapes import check_sizes, check_value_shape, expanded_shape, sample_shape_of
from pyro_vd.numpyro.arguments import check_precision, is_number, require_key


class ImproperLogUniform(Distribution):
    """The improper log-uniform prior on the real line, ``log p(w) = -log |w|`` up to a constant.

    It cannot be sampled and has no normaliser; its purpose is an analytic KL to a Gaussian weight
    (:func:`pyro_vd.numpyro.kl.kl_log_uniform`), which has no dependence on the scale of the weight. With a
    likelihood it gives in general no proper posterior (Hron, Matthews, Ghahramani 2018,
    arXiv:1807.01969): report held-out likelihood, never compare its bound across models.

    Args:
        batch_shape: shape of independent weights; use ``.expand(shape).to_event(n)`` as for any NumPyro
            distribution.

    Raises:
        ValueError: from ``sample``/``rsample``: there is nothing to draw from.

    Example:
        >>> ImproperLogUniform().expand([2]).log_prob(jnp.array([1.0, math.e]))
        Array([-0., -1.], dtype=float32)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 4.2.

    See also:
        :class:`pyro_vd.numpyro.TruncatedLogUniform`, :func:`pyro_vd.numpyro.kl.kl_log_uniform`,
        :class:`pyro_vd.numpyro.DropoutNormal`.
    """

    arg_constraints: Any = {}
    support: Any = constraints.real

    def __init__(self, batch_shape: Sequence[int] = (), *, validate_args: bool | None = None):
        cure = "ImproperLogUniform(), which a BayesianModule expands, or ImproperLogUniform((in_, out))"
        sizes = check_sizes("ImproperLogUniform", "batch_shape", batch_shape, cure)
        super().__init__(sizes, validate_args=validate_args)

    def __repr__(self) -> str:
        return f"ImproperLogUniform(batch_shape: {self.batch_shape})"

    @property
    def has_rsample(self) -> bool:
        return False

    def expand(self, batch_shape: Sequence[int]) -> ImproperLogUniform:
        return ImproperLogUniform(expanded_shape(self, batch_shape), validate_args=False)

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """``-log |value|``, not normalised, in nats; plus infinity at 0."""
        check_value_shape(self, jnp.shape(value))
        log_prob = -jnp.log(jnp.abs(value))
        return jnp.broadcast_to(log_prob, jnp.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> NoReturn:
        raise ValueError(
            "ImproperLogUniform: expected a distribution that can be sampled, got the improper density 1 / |w|, "
            "which has no draws (no prior predictive, no MCMC start, and the guide must cover the site). Write "
            "pyro_vd.numpyro.TruncatedLogUniform(low, high), Normal or StudentT as the prior instead, or give the site "
            "a guide such as pyro_vd.guides.numpyro.AutoSparseVD(model)."
        )

    def rsample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> NoReturn:
        self.sample(key, sample_shape)


class TruncatedLogUniform(Distribution):
    """The proper log-uniform prior on ``low <= |w| <= high``, sign uniform.

    ``p(w) = 1 / (2 * |w| * log(high / low))``.

    Args:
        low: smallest size of a weight, > 0; broadcasts with ``high``.
        high: largest size of a weight, > low.

    Raises:
        ValueError: unless ``0 < low < high`` (where the numbers are known: not under jit); float64 while JAX has it
            switched off.

    Example:
        >>> TruncatedLogUniform(1.0, math.e).log_prob(1.0).round(4)
        Array(-0.6931, dtype=float32, weak_type=True)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 4.2 ("uniform on the log-scale"); made proper as
        Neklyudov et al. 2017 do, arXiv:1705.07283, section 3.2.

    See also:
        :class:`pyro_vd.numpyro.ImproperLogUniform`.
    """

    arg_constraints: Any = {"low": constraints.positive, "high": constraints.positive}
    reparametrized_params = ["low", "high"]
    # Not an interval: both signs. The density outside the shell is 0, so log_prob is -inf there.
    support: Any = constraints.real
    low: Any
    high: Any

    def __init__(self, low: Array | float, high: Array | float, *, validate_args: bool | None = None):
        for name, bound in (("low", low), ("high", high)):
            if is_number(bound):
                continue
            check_precision("TruncatedLogUniform", name, bound)
            kind = getattr(bound, "dtype", None)
            if kind is None or not jnp.issubdtype(kind, jnp.floating):
                raise TypeError(
                    f"TruncatedLogUniform: expected {name} to be a number or a floating point array, got "
                    f"{shown(bound)}; write TruncatedLogUniform(1e-4, 10.0)"
                )
        known = validate_args is not False and not any(isinstance(x, Tracer) for x in (low, high))
        if known and not np.all((0 < np.asarray(low)) & (np.asarray(low) < np.asarray(high)) & np.isfinite(high)):
            raise ValueError(
                f"TruncatedLogUniform: expected 0 < low < high, got low={low!r}, high={high!r}; low and high are "
                "finite sizes |w|, the sign is free"
            )
        low, high = (_floating(bound) for bound in (low, high))
        promoted: Any = promote_shapes(low, high)
        self.low, self.high = promoted
        batch_shape = jnp.broadcast_shapes(jnp.shape(low), jnp.shape(high))
        super().__init__(batch_shape, validate_args=False)
        vars(self).pop("_validate_args")  # NumPyro's setting at construction, for the values of log_prob
        if validate_args is not None:
            self._validate_args = validate_args

    def __repr__(self) -> str:
        return f"TruncatedLogUniform(low: {jnp.shape(self.low)}, high: {jnp.shape(self.high)})"

    @property
    def mean(self) -> Array:
        return jnp.zeros(self.batch_shape, self._dtype)

    @property
    def variance(self) -> Array:
        """``(high**2 - low**2) / (2 * log(high / low))``."""
        variance = (jnp.square(self.high) - jnp.square(self.low)) / (2 * self._log_ratio)
        return jnp.broadcast_to(variance, self.batch_shape)

    @property
    def _dtype(self) -> Any:
        return jnp.result_type(self.low, self.high)

    @property
    def _log_ratio(self) -> Array:
        return jnp.log(self.high / self.low)

    def expand(self, batch_shape: Sequence[int]) -> TruncatedLogUniform:
        batch_shape = expanded_shape(self, batch_shape)
        low, high = jnp.broadcast_to(self.low, batch_shape), jnp.broadcast_to(self.high, batch_shape)
        return TruncatedLogUniform(low, high, validate_args=False)

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """Normalised, in nats; -inf outside ``low <= |value| <= high``."""
        check_value_shape(self, jnp.shape(value))
        size = jnp.abs(value)
        inside = (size >= self.low) & (size <= self.high)
        safe = jnp.where(inside, size, self.high)
        return jnp.where(inside, -jnp.log(safe) - jnp.log(2 * self._log_ratio), -math.inf)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = (*sample_shape_of(self, sample_shape), *self.batch_shape)
        return self.icdf(jax.random.uniform(require_key("TruncatedLogUniform", key), shape, self._dtype))

    def cdf(self, value: Array) -> Array:
        """P(w <= value): 1/2 between -low and low."""
        size = jnp.clip(jnp.abs(value), self.low, self.high)
        return 0.5 + 0.5 * jnp.sign(value) * jnp.log(size / self.low) / self._log_ratio

    def icdf(self, q: Array) -> Array:
        """The w with P(W <= w) = q; at q = 1/2, where every w in [-low, low] is one, low."""
        folded = 2 * q - 1
        size = jnp.clip(self.low * jnp.exp(self._log_ratio * jnp.abs(folded)), self.low, self.high)
        return jnp.where(folded < 0, -size, size)


def _floating(bound: Any) -> Array:
    """An array as it is, a number in the floating point type that JAX has for one of Python."""
    return jnp.asarray(float(bound) if is_number(bound) else bound)
