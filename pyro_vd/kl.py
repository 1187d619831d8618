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


def kl_additive(formula: Callable[[Tensor], Tensor], loc: Tensor, log_sigma2: Tensor) -> Tensor:
    """``formula(log_alpha_additive(loc, log_sigma2))`` with one tensor kept for the gradient, not the ten it takes.

    Those of all layers together would be most of the memory of a training step. Large weights are worked through a few
    rows at a time.

    Args:
        formula: elementwise, from log_alpha to nats, such as :func:`kl_ard`.
        loc: posterior mean, any shape.
        log_sigma2: natural log of the posterior variance, broadcasts with ``loc``.

    Returns:
        Nats per weight, the shape of ``loc``; nothing is summed.

    Example:
        >>> loc = torch.tensor([1.0], requires_grad=True)
        >>> torch.autograd.grad(kl_additive(kl_ard, loc, torch.zeros(1)), loc)
        (tensor([0.5000]),)
    """
    return _Additive.apply(formula, loc, log_sigma2)[0]  # type: ignore[index]


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
        # u / (1 + 2 * u) = 0.5 * sigmoid(-log_alpha): the factor that keeps relative accuracy as alpha grows,
        # where loc's gradient multiplies it by 2 / loc.
        series = _chebyshev(c.DAWSON_SLOPE, c.SLOPE_TERMS_SINGLE, log_alpha)
        return grad_output * (-0.5 * torch.sigmoid(-log_alpha) * series)


class _Additive(torch.autograd.Function):
    """The value, and its derivative with respect to log_alpha."""

    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Callable[[Tensor], Tensor], loc: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Tensor | None]:
        with_slope = loc.requires_grad or log_sigma2.requires_grad

        def piece(loc: Tensor, log_sigma2: Tensor) -> tuple[Tensor, ...]:
            log_alpha = log_alpha_additive(loc, log_sigma2)
            if not with_slope:
                return (formula(log_alpha),)
            value, pull = torch.func.vjp(formula, log_alpha)
            return value, pull(torch.ones_like(value))[0]

        if loc.numel() <= _PIECE or loc.shape != log_sigma2.shape:
            value, *slope = piece(loc, log_sigma2)
        else:
            value, *slope = (torch.empty_like(loc) for _ in range(1 + with_slope))
            rows = max(1, _PIECE // loc.shape[1:].numel())
            cut = zip(*(tensor.split(rows) for tensor in (loc, log_sigma2, value, *slope)), strict=True)
            for loc_piece, log_sigma2_piece, *targets in cut:
                for target, result in zip(targets, piece(loc_piece, log_sigma2_piece), strict=True):
                    target.copy_(result)
        return value, *(slope or [None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        ctx.formula = inputs[0]
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[1:], output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[None, Tensor, Tensor]:
        loc, log_sigma2, slope = ctx.saved_tensors
        if slope is None or torch.is_grad_enabled():  # for a derivative of the derivative

            def whole(loc: Tensor, log_sigma2: Tensor) -> Tensor:
                return ctx.formula(log_alpha_additive(loc, log_sigma2))

            return None, *torch.func.vjp(whole, loc, log_sigma2)[1](grad_output)
        slope = slope * grad_output
        known = loc.abs() >= torch.finfo(loc.dtype).tiny
        grad_loc = torch.where(known, slope / loc, 0.0).mul_(-2.0)
        return None, grad_loc.sum_to_size(loc.shape), slope.sum_to_size(log_sigma2.shape)


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
