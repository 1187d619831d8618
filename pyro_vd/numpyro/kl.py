"""KL divergence of a Gaussian weight to the log-uniform prior, as a function of log_alpha alone.

    w = loc * (1 + sqrt(alpha) * e),  e ~ N(0, 1),  p(w) ~ 1 / |w|
    KL(q || p) = -0.5 * log_alpha + E[log |1 + sqrt(alpha) * e|] + C

The prior is improper, so C is free. Here C = (ln 2 + Euler gamma) / 2 in every method, which makes
KL -> 0 as alpha -> infinity and lets the methods be compared. Everything is elementwise and in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_vd import _constants as c
from pyro_vd.common import options
from pyro_vd.common.options import LOG_UNIFORM_METHODS, LogUniformKL


def kl_log_uniform(log_alpha: Array, method: LogUniformKL = "sigmoid") -> Array:
    """KL(N(loc, alpha * loc**2) || log-uniform) of each weight.

    ============= ==================================================================== =====================
    method        formula                                                              valid, largest error
    ============= ==================================================================== =====================
    "sigmoid"     k1 * sigmoid(-k2 - k3 * log_alpha) + 0.5 * log1p(1 / alpha)          everywhere, 0.0094
    "cubic"       C - 0.5 * log_alpha - c1 * alpha - c2 * alpha**2 - c3 * alpha**3     alpha <= 1, 0.0403
    "lower_bound" C - 0.5 * log_alpha                                                  alpha <= 1, 0.245
    "exact"       2 * integral_0^sqrt(u) D(r) dr, u = 1 / (2 * alpha), D Dawson's      everywhere, 1e-10
    ============= ==================================================================== =====================

    The gradient of "exact" is its own closed form, ``-sqrt(u) * D(sqrt(u))``, accurate in relative
    terms too; it is differentiable again. "cubic" and "lower_bound" hold for alpha <= 1 only: a
    positive log_alpha is read as 0 there, with gradient 0.

    Args:
        log_alpha: natural log of the noise ratio ``scale**2 / loc**2``, any shape, floating point.
        method: one of the names above.

    Returns:
        Nats per weight, shape and dtype of ``log_alpha``; nothing is summed.

    Raises:
        ValueError: unknown method.
        TypeError: not a floating point array.

    Example:
        >>> kl_log_uniform(jnp.array([-4.0, 0.0, 4.0]), "exact").round(4)
        Array([2.6258, 0.4267, 0.0091], dtype=float32)

    References:
        "sigmoid": Molchanov et al. 2017, arXiv:1701.05369, equation 14. "cubic", "lower_bound":
        Kingma et al. 2015, arXiv:1506.02557, appendix C. "exact": the integral of Dawson's function
        that the moments of a folded Gaussian give.

    See also:
        :class:`pyro_vd.numpyro.ImproperLogUniform`, :func:`pyro_vd.numpyro.kl.kl_ard`.
    """
    options.check_choice("method", method, LOG_UNIFORM_METHODS, "kl_log_uniform")
    return _METHODS[method](_floating("kl_log_uniform", "log_alpha", log_alpha))


def kl_ard(log_alpha: Array) -> Array:
    """KL(N(loc, scale**2) || N(0, tau**2)) of each weight, the prior fitted: tau**2 = loc**2 + scale**2.

    ``0.5 * log1p(1 / alpha)``. The prior is not that of :func:`kl_log_uniform`: the two
    cannot be compared by value.

    Args:
        log_alpha: natural log of ``scale**2 / loc**2``, any shape.

    Returns:
        Nats per weight, shape of ``log_alpha``; nothing is summed.

    Example:
        >>> kl_ard(jnp.array([0.0])).round(4)
        Array([0.3466], dtype=float32)

    References:
        Kharitonov, Molchanov, Vetrov 2018, arXiv:1811.00596, equation 12.

    See also:
        :class:`pyro_vd.guides.numpyro.AutoARD`, :func:`pyro_vd.numpyro.kl.kl_log_uniform`.
    """
    return 0.5 * jax.nn.softplus(-_floating("kl_ard", "log_alpha", log_alpha))


def log_alpha_additive(loc: Array, log_sigma2: Array) -> Array:
    """log_alpha = log_sigma2 - 2 * log |loc|, finite in value and gradient at loc = 0.

    Below the smallest normal number |loc| is read as that number, so no weight of a size that
    matters is moved: an epsilon of 1e-8 inside the logarithm would shift alpha of weights near 1e-4.

    Args:
        loc: posterior mean, any shape.
        log_sigma2: natural log of the posterior variance, broadcasts with ``loc``.

    Returns:
        log_alpha, the broadcast shape.

    Example:
        >>> log_alpha_additive(jnp.array(1e-3), jnp.array(-10.0)).round(4)
        Array(3.8155, dtype=float32)
    """
    loc = _floating("log_alpha_additive", "loc", loc)
    log_sigma2 = _floating("log_alpha_additive", "log_sigma2", log_sigma2)
    return log_sigma2 - 2.0 * jnp.log(jnp.maximum(jnp.abs(loc), jnp.finfo(loc.dtype).tiny))


def _floating(owner: str, name: str, value: Any) -> Any:
    kind = jnp.result_type(value) if isinstance(value, (jax.Array, np.ndarray, np.generic, float)) else None
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        raise TypeError(
            f"{owner}: expected {name} to be a floating point array, got {options.shown(value)}; write "
            f"jnp.asarray({name}, float)"
        )
    return jnp.asarray(value) if isinstance(value, float) else value


def _sigmoid(log_alpha: Array) -> Array:
    # k1 - k1 * sigmoid(x) is written k1 * sigmoid(-x): no cancellation where the KL is small.
    return c.SIGMOID_K1 * jax.nn.sigmoid(-c.SIGMOID_K2 - c.SIGMOID_K3 * log_alpha) + kl_ard(log_alpha)


def _cubic(log_alpha: Array) -> Array:
    log_alpha = _at_most_zero(log_alpha)
    alpha = jnp.exp(log_alpha)
    return c.KL_CONSTANT - 0.5 * log_alpha - alpha * (c.CUBIC_C1 + alpha * (c.CUBIC_C2 + alpha * c.CUBIC_C3))


def _lower_bound(log_alpha: Array) -> Array:
    return c.KL_CONSTANT - 0.5 * _at_most_zero(log_alpha)


def _at_most_zero(log_alpha: Array) -> Array:
    # jnp.minimum would halve the gradient at 0 exactly, where alpha = 1 is started or projected to.
    return jnp.where(log_alpha > 0, jnp.zeros_like(log_alpha), log_alpha)


@jax.custom_jvp
def _exact(log_alpha: Array) -> Array:
    """Value and gradient by two Chebyshev series in tanh of log_alpha (see ``_constants``)."""
    return kl_ard(log_alpha) + _chebyshev(c.DAWSON_VALUE, c.VALUE_TERMS_SINGLE, log_alpha)


@_exact.defjvp
def _exact_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (log_alpha,), (tangent,) = primals, tangents
    # u / (1 + 2 * u) = 0.5 * sigmoid(-log_alpha): the factor that keeps relative accuracy as alpha grows,
    # where loc's gradient multiplies it by 2 / loc.
    series = _chebyshev(c.DAWSON_SLOPE, c.SLOPE_TERMS_SINGLE, log_alpha)
    return _exact(log_alpha), tangent * (-0.5 * jax.nn.sigmoid(-log_alpha) * series)


def _chebyshev(coefficients: Sequence[float], terms_single: int, log_alpha: Array) -> Array:
    """Clenshaw's recurrence for sum_k coefficients[k] * T_k(tanh((center - log_alpha) / 2))."""
    t = jnp.tanh(0.5 * (c.DAWSON_CENTER - log_alpha))
    if t.dtype != jnp.float64:
        coefficients = coefficients[:terms_single]
    b1 = b2 = jnp.zeros_like(t)
    for coefficient in reversed(coefficients[1:]):
        b1, b2 = 2.0 * t * b1 - b2 + coefficient, b1
    return t * b1 - b2 + coefficients[0]


_METHODS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": _sigmoid,
    "cubic": _cubic,
    "lower_bound": _lower_bound,
    "exact": _exact,
}
