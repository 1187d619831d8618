"""KL divergence of a Gaussian weight to the log-uniform prior, as a function of log_alpha alone.

    w = loc * (1 + sqrt(alpha) * e),  e ~ N(0, 1),  p(w) ~ 1 / |w|
    KL(q || p) = -0.5 * log_alpha + E[log |1 + sqrt(alpha) * e|] + C

The prior is improper, so C is free. Here C = (ln 2 + Euler gamma) / 2 in every method, which makes
KL -> 0 as alpha -> infinity and lets the methods be compared. Everything is elementwise and in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vd import _constants as c

# Weights of kl_additive taken at a time: 1 MiB in float32, so that what is computed in between stays in the cache.
_PIECE = 2**18


def kl_log_uniform(log_alpha: Tensor, method: str = "sigmoid") -> Tensor:
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

    Example:
        >>> kl_log_uniform(torch.tensor([-4.0, 0.0, 4.0]), "exact")
        tensor([2.6258, 0.4267, 0.0091])

    References:
        "sigmoid": Molchanov et al. 2017, arXiv:1701.05369, equation 14. "cubic", "lower_bound":
        Kingma et al. 2015, arXiv:1506.02557, appendix C. "exact": the integral of Dawson's function
        that the moments of a folded Gaussian give.
    """
    try:
        formula = _METHODS[method]
    except KeyError:
        raise ValueError(
            f"kl_log_uniform: expected method to be one of {', '.join(map(repr, _METHODS))}, got {method!r}"
        ) from None
    return formula(log_alpha)


def kl_ard(log_alpha: Tensor) -> Tensor:
    """KL(N(loc, scale**2) || N(0, tau**2)) of each weight, the prior fitted: tau**2 = loc**2 + scale**2.

    ``0.5 * log1p(1 / alpha)``. The prior is another one than in :func:`kl_log_uniform`: the two
    cannot be compared by value.

    Args:
        log_alpha: natural log of ``scale**2 / loc**2``, any shape.

    Returns:
        Nats per weight, shape of ``log_alpha``; nothing is summed.

    Example:
        >>> kl_ard(torch.tensor([0.0]))
        tensor([0.3466])

    References:
        Kharitonov, Molchanov, Vetrov 2018, arXiv:1811.00596, equation 12.
    """
    return 0.5 * _softplus(-log_alpha)


def log_alpha_additive(loc: Tensor, log_sigma2: Tensor) -> Tensor:
    """log_alpha = log_sigma2 - 2 * log |loc|, finite in value and gradient at loc = 0.

    Below the smallest normal number |loc| is read as that number, so no weight of a size that
    matters is moved: an epsilon of 1e-8 inside the logarithm would shift alpha of weights near 1e-4.

    Args:
        loc: posterior mean, any shape.
        log_sigma2: natural log of the posterior variance, broadcasts with ``loc``.

    Returns:
        log_alpha, the broadcast shape.

    Example:
        >>> log_alpha_additive(torch.tensor(1e-3), torch.tensor(-10.0))
        tensor(3.8155)
    """
    return log_sigma2 - 2.0 * loc.abs().clamp_min(torch.finfo(loc.dtype).tiny).log()


def kl_additive(loc: Tensor, log_sigma2: Tensor, method: str = "sigmoid") -> Tensor:
    """The KL of an additive weight ``N(loc, exp(log_sigma2))``, with one tensor kept for its gradient, not ten.

    ``kl_log_uniform(log_alpha_additive(loc, log_sigma2), method)``, or ``kl_ard`` of it. What autograd keeps for all
    layers together would be most of the memory of a training step. Large weights are taken a few rows at a time.

    Args:
        loc: posterior mean, any shape.
        log_sigma2: natural log of the posterior variance, broadcasts with ``loc``.
        method: a method of :func:`kl_log_uniform`, or "ard".

    Returns:
        Nats per weight, the broadcast shape; nothing is summed.

    Raises:
        ValueError: unknown method.

    Example:
        >>> loc = torch.tensor([1.0], requires_grad=True)
        >>> torch.autograd.grad(kl_additive(loc, torch.zeros(1), "ard"), loc)
        (tensor([0.5000]),)
    """
    if method not in _SLOPES:
        raise ValueError(f"kl_additive: expected method to be one of {', '.join(map(repr, _SLOPES))}, got {method!r}")
    return _Additive.apply(loc, log_sigma2, method)[0]  # type: ignore[index]


def _sigmoid(log_alpha: Tensor) -> Tensor:
    # k1 - k1 * sigmoid(x) is written k1 * sigmoid(-x): no cancellation where the KL is small.
    return c.SIGMOID_K1 * torch.sigmoid(-c.SIGMOID_K2 - c.SIGMOID_K3 * log_alpha) + kl_ard(log_alpha)


def _cubic(log_alpha: Tensor) -> Tensor:
    log_alpha = log_alpha.clamp(max=0.0)
    alpha = log_alpha.exp()
    return c.KL_CONSTANT - 0.5 * log_alpha - alpha * (c.CUBIC_C1 + alpha * (c.CUBIC_C2 + alpha * c.CUBIC_C3))


def _lower_bound(log_alpha: Tensor) -> Tensor:
    return c.KL_CONSTANT - 0.5 * log_alpha.clamp(max=0.0)


class _Exact(torch.autograd.Function):
    """Value and gradient by two Chebyshev series in tanh of log_alpha (see ``_constants``)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_alpha: Tensor) -> Tensor:
        value = _chebyshev(c.DAWSON_VALUE, c.VALUE_TERMS_SINGLE, log_alpha)
        return 0.5 * _softplus(-log_alpha) + value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (log_alpha,) = ctx.saved_tensors
        return grad_output * _exact_slope(log_alpha)


class _Additive(torch.autograd.Function):
    """The value, and its derivative with respect to log_alpha."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loc: Tensor, log_sigma2: Tensor, method: str) -> tuple[Tensor, Tensor]:
        def piece(loc: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Tensor]:
            log_alpha = log_alpha_additive(loc, log_sigma2)
            return _VALUES[method](log_alpha), _SLOPES[method](log_alpha)

        if loc.numel() <= _PIECE or loc.shape != log_sigma2.shape:
            return piece(loc, log_sigma2)
        value, slope = torch.empty_like(loc), torch.empty_like(loc)
        rows = max(1, _PIECE // loc.shape[1:].numel())
        for i, inputs in enumerate(zip(loc.split(rows), log_sigma2.split(rows), strict=True)):
            value[i * rows : (i + 1) * rows], slope[i * rows : (i + 1) * rows] = piece(*inputs)
        return value, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        loc, log_sigma2, ctx.method = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(loc, log_sigma2, output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor, Tensor, None]:
        loc, log_sigma2, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a derivative of the derivative
            slope = _SLOPES[ctx.method](log_alpha_additive(loc, log_sigma2))
        slope = slope * grad_output
        known = loc.abs() >= torch.finfo(loc.dtype).tiny
        grad_loc = torch.where(known, slope / torch.where(known, loc, 1.0), 0.0) * -2.0
        return grad_loc.sum_to_size(loc.shape), slope.sum_to_size(log_sigma2.shape), None


def _ard_slope(log_alpha: Tensor) -> Tensor:
    return -0.5 * torch.sigmoid(-log_alpha)


def _sigmoid_slope(log_alpha: Tensor) -> Tensor:
    step = torch.sigmoid(-c.SIGMOID_K2 - c.SIGMOID_K3 * log_alpha)
    return _ard_slope(log_alpha) - c.SIGMOID_K1 * c.SIGMOID_K3 * step * (1.0 - step)


def _cubic_slope(log_alpha: Tensor) -> Tensor:
    alpha = log_alpha.clamp(max=0.0).exp()
    slope = -0.5 - alpha * (c.CUBIC_C1 + alpha * (2.0 * c.CUBIC_C2 + 3.0 * c.CUBIC_C3 * alpha))
    return torch.where(log_alpha <= 0.0, slope, 0.0)


def _lower_bound_slope(log_alpha: Tensor) -> Tensor:
    return -0.5 * (log_alpha <= 0.0).to(log_alpha.dtype)


def _exact_slope(log_alpha: Tensor) -> Tensor:
    # u / (1 + 2 * u) = 0.5 * sigmoid(-log_alpha): the factor that keeps relative accuracy as alpha grows,
    # where loc's gradient multiplies it by 2 / loc.
    return _ard_slope(log_alpha) * _chebyshev(c.DAWSON_SLOPE, c.SLOPE_TERMS_SINGLE, log_alpha)


def _chebyshev(coefficients: Sequence[float], terms_single: int, log_alpha: Tensor) -> Tensor:
    """Clenshaw's recurrence for sum_k coefficients[k] * T_k(tanh((center - log_alpha) / 2))."""
    t = torch.tanh(0.5 * (c.DAWSON_CENTER - log_alpha))
    if log_alpha.dtype != torch.float64:
        coefficients = coefficients[:terms_single]
    b1 = b2 = torch.zeros_like(t)
    for coefficient in reversed(coefficients[1:]):
        b1, b2 = 2.0 * t * b1 - b2 + coefficient, b1
    return t * b1 - b2 + coefficients[0]


def _softplus(x: Tensor) -> Tensor:
    # PyTorch's default threshold of 20 would cost 1e-9 in float64.
    return softplus(x, threshold=40.0)


_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": _sigmoid,
    "cubic": _cubic,
    "lower_bound": _lower_bound,
    "exact": _Exact.apply,
}
_VALUES: dict[str, Callable[[Tensor], Tensor]] = {**_METHODS, "ard": kl_ard}
_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": _sigmoid_slope,
    "cubic": _cubic_slope,
    "lower_bound": _lower_bound_slope,
    "exact": _exact_slope,
    "ard": _ard_slope,
}
