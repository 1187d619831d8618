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
from pyro_vd._torch import applied, at_least_tiny, in_blocks, reciprocal_or_zero
from pyro_vd.common import options
from pyro_vd.common.options import KL_METHODS, LOG_UNIFORM_METHODS, LogUniformKL, NormalKL


def kl_log_uniform(log_alpha: Tensor, method: LogUniformKL = "sigmoid") -> Tensor:
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
        TypeError: not a floating point tensor.

    Example:
        >>> kl_log_uniform(torch.tensor([-4.0, 0.0, 4.0]), "exact")
        tensor([2.6258, 0.4267, 0.0091])

    References:
        "sigmoid": Molchanov et al. 2017, arXiv:1701.05369, equation 14. "cubic", "lower_bound":
        Kingma et al. 2015, arXiv:1506.02557, appendix C. "exact": the integral of Dawson's function
        that the moments of a folded Gaussian give.

    See also:
        :class:`pyro_vd.ImproperLogUniform`, :func:`pyro_vd.kl.kl_ard`, :func:`pyro_vd.kl.kl_additive`.
    """
    options.check_choice("method", method, LOG_UNIFORM_METHODS, "kl_log_uniform")
    _check_tensors("kl_log_uniform", log_alpha=log_alpha)
    return applied(_Elementwise, log_alpha, method)[0]


def kl_ard(log_alpha: Tensor) -> Tensor:
    """KL(N(loc, scale**2) || N(0, tau**2)) of each weight, the prior fitted: tau**2 = loc**2 + scale**2.

    ``0.5 * log1p(1 / alpha)``. The prior is not that of :func:`kl_log_uniform`: the two
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

    See also:
        :class:`pyro_vd.guides.AutoARD`, :func:`pyro_vd.kl.kl_log_uniform`.
    """
    _check_tensors("kl_ard", log_alpha=log_alpha)
    return applied(_Elementwise, log_alpha, "ard")[0]


def kl_additive(loc: Tensor, log_sigma2: Tensor, method: NormalKL = "sigmoid") -> Tensor:
    """KL of each weight ``N(loc, exp(log_sigma2))``: that of :func:`log_alpha_additive`, as one operation.

    Of the tensors in between, one is kept for the gradient.

    Args:
        loc: posterior mean, any shape.
        log_sigma2: natural log of the posterior variance, broadcasts with ``loc``.
        method: one of :func:`kl_log_uniform`, or "ard" for :func:`kl_ard`.

    Returns:
        Nats per weight, the broadcast shape; nothing is summed.

    Raises:
        ValueError: unknown method.

    Example:
        >>> kl_additive(torch.tensor([1.0, 1e-3]), torch.tensor(-10.0), "exact")
        tensor([5.6352, 0.0110])

    See also:
        :func:`pyro_vd.kl.kl_log_uniform`, :func:`pyro_vd.kl.log_alpha_additive`.
    """
    options.check_choice("method", method, KL_METHODS, "kl_additive")
    _check_tensors("kl_additive", loc=loc, log_sigma2=log_sigma2)
    return applied(_Additive, loc, log_sigma2, method)[0]


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

    See also:
        :func:`pyro_vd.kl.kl_additive`.
    """
    _check_tensors("log_alpha_additive", loc=loc, log_sigma2=log_sigma2)
    return _log_alpha(loc, log_sigma2)


def _log_alpha(loc: Tensor, log_sigma2: Tensor) -> Tensor:
    return torch.sub(log_sigma2, at_least_tiny(loc.abs()).log(), alpha=2)


def _check_tensors(owner: str, **tensors: Any) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(
                f"{owner}: expected {name} to be a floating point tensor, got {options.shown(value)}; write "
                f"torch.as_tensor({name}, dtype=torch.float32)"
            )


class _Elementwise(torch.autograd.Function):
    """A value that is a function of log_alpha alone, and its slope, which is kept for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_alpha: Tensor, method: str) -> tuple[Tensor, Tensor]:
        return in_blocks(_METHODS[method], log_alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.method = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor, None]:
        log_alpha, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a derivative of the derivative
            slope = _METHODS[ctx.method](log_alpha)[1]
        return grad_output * slope, None


class _Additive(torch.autograd.Function):
    """The same of ``log_sigma2 - 2 * log |loc|``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loc: Tensor, log_sigma2: Tensor, method: str) -> tuple[Tensor, Tensor]:
        return in_blocks(lambda loc, log_sigma2: _METHODS[method](_log_alpha(loc, log_sigma2)), loc, log_sigma2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:2], output[1])
        ctx.method = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor, Tensor, None]:
        loc, log_sigma2, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            slope = _METHODS[ctx.method](_log_alpha(loc, log_sigma2))[1]
        inverse = reciprocal_or_zero(loc)
        slope = grad_output * slope
        by_loc = torch.addcmul(slope.new_zeros(()), slope, inverse, value=-2.0)
        return by_loc.sum_to_size(loc.shape), slope.sum_to_size(log_sigma2.shape), None


# Each method: its value and its slope, in few passes over memory. Nothing is done in place: under torch.compile in
# torch 2.11 (aot_eager) the gradient would be another.


def _sigmoid(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    # k1 - k1 * sigmoid(x) is written k1 * sigmoid(-x): no cancellation where the KL is small.
    s = torch.sigmoid(torch.mul(log_alpha, -c.SIGMOID_K3) - c.SIGMOID_K2)
    value, slope = _ard(log_alpha)
    return torch.add(value, s, alpha=c.SIGMOID_K1), torch.addcmul(slope, s, s - 1.0, value=c.SIGMOID_K1 * c.SIGMOID_K3)


def _cubic(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    valid = log_alpha <= 0
    # Not a clamp, whose own derivative at 0, where alpha = 1 is projected to, is 1 up to torch 2.13 and 0 from 2.14.
    log_alpha = torch.where(log_alpha > 0, 0.0, log_alpha)
    alpha = log_alpha.exp()
    value = c.KL_CONSTANT - 0.5 * log_alpha - alpha * (c.CUBIC_C1 + alpha * (c.CUBIC_C2 + alpha * c.CUBIC_C3))
    slope = -0.5 - alpha * (c.CUBIC_C1 + alpha * (2 * c.CUBIC_C2 + alpha * (3 * c.CUBIC_C3)))
    return value, torch.where(valid, slope, 0.0)


def _lower_bound(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    return c.KL_CONSTANT - 0.5 * log_alpha.clamp(max=0.0), -0.5 * (log_alpha <= 0).to(log_alpha.dtype)


def _exact(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """By two Chebyshev series in tanh of log_alpha (see ``_constants``)."""
    value, slope = _ard(log_alpha)
    t = torch.tanh(0.5 * (c.DAWSON_CENTER - log_alpha))
    # u / (1 + 2 * u) = 0.5 * sigmoid(-log_alpha): the factor that keeps relative accuracy as alpha grows,
    # where loc's gradient multiplies it by 2 / loc.
    return (
        value + _chebyshev(c.DAWSON_VALUE, c.VALUE_TERMS_SINGLE, t),
        slope * _chebyshev(c.DAWSON_SLOPE, c.SLOPE_TERMS_SINGLE, t),
    )


def _ard(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    negative = -log_alpha
    # PyTorch's default threshold of 20 would cost 1e-9 in float64.
    return 0.5 * softplus(negative, threshold=40.0), -0.5 * torch.sigmoid(negative)


def _chebyshev(coefficients: Sequence[float], terms_single: int, t: Tensor) -> Tensor:
    """Clenshaw's recurrence for sum_k coefficients[k] * T_k(t)."""
    if t.dtype != torch.float64:
        coefficients = coefficients[:terms_single]
    b1 = b2 = torch.zeros_like(t)
    for coefficient in reversed(coefficients[1:]):
        b1, b2 = 2.0 * t * b1 - b2 + coefficient, b1
    return t * b1 - b2 + coefficients[0]


_METHODS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "sigmoid": _sigmoid,
    "cubic": _cubic,
    "lower_bound": _lower_bound,
    "exact": _exact,
    "ard": _ard,
}
