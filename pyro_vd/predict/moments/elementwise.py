"""Moments of a Gaussian through functions of one element, in closed form or by Gauss-Hermite quadrature.

Closed forms: ReLU, leaky ReLU, abs, hardtanh, relu6, clamp, square, exp. By quadrature of 32 points: GELU, SiLU,
tanh, sigmoid, softplus, ELU, sine and others. Largest error of mean or standard deviation, measured against 20,001
points over means of -5..5, by the standard deviation of the input:

    up to      sigmoid, SiLU, softplus, GELU    tanh      ELU
    1          1e-10                            2e-6      5e-4
    3          2e-3                             0.01      5e-3
    10         0.08                             0.09      0.05
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vd.predict.moments.gaussian import GaussianTensor, at_least_zero, rule

T: Any = Tensor
_POINTS = 32
_NODES, _WEIGHTS = (values.tolist() for values in np.polynomial.hermite_e.hermegauss(_POINTS))
_WEIGHTS = [weight / math.sqrt(2 * math.pi) for weight in _WEIGHTS]

_SMOOTH = (
    *(torch.tanh, T.tanh, F.tanh, torch.sigmoid, T.sigmoid, F.sigmoid, torch.special.expit, F.silu, F.gelu, F.softplus),
    *(F.elu, F.celu, F.selu, F.mish, F.logsigmoid, torch.sin, T.sin, torch.cos, T.cos, torch.erf, T.erf, torch.atan),
)


def _through(function: Callable[[Tensor], Tensor], x: GaussianTensor) -> Callable[[Tensor], Tensor]:
    """How the result is drawn at a likelihood: by the function, at draws of its input."""
    return lambda values: function(x.at(values))


def _root(variance: Tensor) -> Tensor:
    """``sqrt(max(variance, 0))``, with gradient 0 at 0 and below."""
    root = variance.clamp_min(0.0).sqrt()
    if not root.requires_grad:
        return root
    positive = ~(variance <= 0)  # NaN stays NaN
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


def _by_quadrature(function: Callable[[Tensor], Tensor], x: GaussianTensor) -> GaussianTensor:
    deviation = _root(x.variance)
    mean, square = torch.zeros_like(x.mean_value), torch.zeros_like(x.mean_value)
    centre = function(x.mean_value)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        value = function(x.mean_value + node * deviation) - centre  # small numbers: no cancellation below
        mean, square = mean + weight * value, square + weight * value.square()
    return x.like(centre + mean, at_least_zero(square - mean.square()), _through(function, x))


def _enter(operation: Callable[..., Any]) -> None:
    @rule(operation)
    def smooth(input: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("inplace", False) or any(isinstance(a, GaussianTensor) for a in (*args, *kwargs.values())):
            return NotImplemented
        return _by_quadrature(lambda value: operation(value, *args, **kwargs), input)


for _operation in _SMOOTH:
    _enter(_operation)


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and second moment of ``max(x, 0)``: ``m * Phi(a) + s * phi(a)``, ``(m**2 + v) * Phi(a) + m * s * phi(a)``.

    ``a = m / s``; at s = 0 the function itself.
    """
    deviation = _root(variance)
    a = mean / deviation.clamp_min(torch.finfo(mean.dtype).tiny)
    cdf, density = torch.special.ndtr(a), torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    first = mean * cdf + deviation * density
    second = (mean.square() + variance) * cdf + mean * deviation * density
    return first, second


def _leaky(x: GaussianTensor, slope: float, function: Callable[[Tensor], Tensor]) -> GaussianTensor:
    """``f(x) = slope * x + (1 - slope) * max(x, 0)``, ``f(x)**2 = slope**2 * x**2 + (1 - slope**2) * max(x, 0)**2``."""
    first, second = relu_moments(x.mean_value, x.variance)
    mean = slope * x.mean_value + (1 - slope) * first
    square = slope**2 * (x.mean_value.square() + x.variance) + (1 - slope**2) * second
    return x.like(mean, at_least_zero(square - mean.square()), _through(function, x))


@rule(torch.relu, T.relu, F.relu, torch.relu_, T.relu_)
def relu(input: Any, inplace: bool = False) -> Any:
    """``max(x, 0)``."""
    return _leaky(input, 0.0, torch.relu)


@rule(F.leaky_relu)
def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """``max(x, 0) + negative_slope * min(x, 0)``."""
    return _leaky(input, negative_slope, lambda value: F.leaky_relu(value, negative_slope))


@rule(F.threshold)
def threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    """The ReLU, ``threshold`` and ``value`` being 0."""
    return relu(input) if threshold == value == 0 else NotImplemented


@rule(torch.abs, T.abs, T.__abs__)
def absolute(input: Any) -> Any:
    """``|x|``, a leaky ReLU of slope -1."""
    return _leaky(input, -1.0, torch.abs)


def _clipped(x: GaussianTensor, low: float, high: float) -> GaussianTensor:
    """Between two numbers: the moments of a Gaussian cut at them, and its mass beyond them placed at the numbers."""
    m, v = x.mean_value, at_least_zero(x.variance)
    deviation = _root(v).clamp_min(torch.finfo(m.dtype).tiny)
    a, b = (low - m) / deviation, (high - m) / deviation
    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    density_a, density_b = (torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) for z in (a, b))
    inside = 1 - below - above
    mean = low * below + high * above + m * inside + deviation * (density_a - density_b)
    square = low**2 * below + high**2 * above + (m.square() + v) * inside
    square = square + deviation * ((low + m) * density_a - (high + m) * density_b)
    return x.like(mean, at_least_zero(square - mean.square()), _through(lambda d: d.clamp(low, high), x))


@rule(F.hardtanh)
def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    """Between ``min_val`` and ``max_val``."""
    return _clipped(input, min_val, max_val)


@rule(F.relu6)
def relu6(input: Any, inplace: bool = False) -> Any:
    """Between 0 and 6."""
    return _clipped(input, 0.0, 6.0)


@rule(torch.clamp, T.clamp, torch.clip, T.clip)
def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """Between two numbers."""
    numbers = isinstance(min, (int, float)) and isinstance(max, (int, float))
    return _clipped(input, min, max) if numbers else NotImplemented


@rule(torch.square, T.square)
def square(input: Any) -> Any:
    """``m**2 + v``, and variance ``2 * v**2 + 4 * m**2 * v``."""
    m, v = input.mean_value, input.variance
    return input.like(m.square() + v, 2 * v.square() + 4 * m.square() * v, _through(torch.square, input))


@rule(torch.pow, T.pow, T.__pow__)
def power(input: Any, exponent: Any) -> Any:
    """The square; no other power."""
    return square(input) if isinstance(exponent, (int, float)) and exponent == 2 else NotImplemented


@rule(torch.exp, T.exp)
def exponential(input: Any) -> Any:
    """The lognormal: ``exp(m + v / 2)``, and variance ``(exp(v) - 1) * exp(2 * m + v)``."""
    m, v = input.mean_value, input.variance
    mean = torch.exp(m + v / 2)
    return input.like(mean, torch.expm1(v) * mean.square(), _through(torch.exp, input))
