"""Moments of sums, products, concatenations, averages and maxima of independent Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vd.estimators import independent_noise
from pyro_vd.predict.moments.gaussian import GaussianTensor, at_least_zero, moments_of, rule

T: Any = Tensor


def _like(*arguments: Any) -> GaussianTensor:
    return next(one for one in arguments if isinstance(one, GaussianTensor))


def _shift(x: Any, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor] | None:
    """How a shifted or scaled tensor is drawn: as the shifted or scaled draws of the tensor."""
    return (lambda values: function(x.at(values))) if isinstance(x, GaussianTensor) else None


@rule(torch.add, T.add, T.__add__, T.__radd__, T.add_, T.__iadd__)
def add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """Means add up, and so do variances: the covariance of two branches of a net is dropped."""
    (m, v), (n, w) = moments_of(input), moments_of(other)
    mean = m + alpha * n
    variance = (v + alpha**2 * w) + torch.zeros_like(mean)
    both = isinstance(input, GaussianTensor) and isinstance(other, GaussianTensor)
    same = mean.shape == _like(input, other).shape
    drawn = None
    if same and not both:
        drawn = _shift(input, lambda d: d + alpha * other) or _shift(other, lambda d: input + alpha * d)
    return _like(input, other).like(mean, variance, drawn)


@rule(torch.sub, T.sub, T.__sub__)
def subtract(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """``input - alpha * other``."""
    return add(input, other, alpha=-alpha)


@rule(T.__rsub__, torch.rsub)
def subtract_from(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """``other - alpha * input``."""
    return add(other, input, alpha=-alpha)


@rule(torch.neg, T.neg, T.__neg__, torch.negative)
def negative(input: Any) -> Any:
    """``-input``."""
    return multiply(input, -1.0)


@rule(torch.mul, T.mul, T.__mul__, T.__rmul__, torch.multiply, T.multiply, T.mul_, T.__imul__)
def multiply(input: Any, other: Any) -> Any:
    """``m * n``, and variance ``v * w + m**2 * w + n**2 * v``."""
    (m, v), (n, w) = moments_of(input), moments_of(other)
    mean = m * n
    variance = v * w + m**2 * w + n**2 * v
    both = isinstance(input, GaussianTensor) and isinstance(other, GaussianTensor)
    drawn = None if both or mean.shape != input.shape else _shift(input, lambda d: d * other)
    return _like(input, other).like(mean, variance, drawn)


@rule(torch.div, T.div, T.__truediv__, torch.true_divide, T.true_divide, torch.divide, T.div_)
def divide(input: Any, other: Any, *, rounding_mode: Any = None) -> Any:
    """By a constant."""
    if isinstance(other, GaussianTensor) or rounding_mode is not None:
        return NotImplemented
    return multiply(input, 1 / other)


@rule(torch.matmul, T.matmul, T.__matmul__, torch.bmm, T.bmm, torch.mm, T.mm)
def matmul(input: Any, other: Any) -> Any:
    """A product of which either factor, or both, are Gaussian: sums of the variances of :func:`multiply`."""
    (m, v), (n, w) = moments_of(input), moments_of(other)
    variance: Any = 0.0
    if isinstance(w, Tensor):
        variance = (m.square() + v) @ w
    if isinstance(v, Tensor):
        variance = variance + v @ n.square()
    return _like(input, other).like(m @ n, variance)


@rule(T.__rmatmul__)
def matmul_from_the_right(input: Any, other: Any) -> Any:
    """``other @ input``."""
    return matmul(other, input)


@rule(F.linear)
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """A product with a weight that is a constant."""
    if isinstance(weight, GaussianTensor) or isinstance(bias, GaussianTensor):
        return NotImplemented
    return input.like(F.linear(input.mean_value, weight, bias), F.linear(input.variance, weight.square()))


def _enter_convolution(operation: Callable[..., Tensor]) -> None:
    @rule(operation)
    def convolution(input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(weight, GaussianTensor) or isinstance(bias, GaussianTensor):
            return NotImplemented
        mean = operation(input.mean_value, weight, bias, *args, **kwargs)
        return input.like(mean, operation(input.variance, weight.square(), None, *args, **kwargs))


for _operation in (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
    _enter_convolution(_operation)


@rule(torch.cat, torch.concat, torch.concatenate, torch.stack)
def concatenate(tensors: Any, dim: int = 0, *, _join: Callable[..., Tensor] = torch.cat) -> Any:
    """Side by side; a constant has variance 0."""
    parts = [moments_of(one) for one in tensors]
    variances = [v if isinstance(v, Tensor) else torch.zeros_like(m) for m, v in parts]
    return _like(*tensors).like(_join([m for m, _ in parts], dim), _join(variances, dim))


@rule(torch.stack)
def stack(tensors: Any, dim: int = 0) -> Any:
    """As :func:`concatenate`, along a new axis."""
    return concatenate(tensors, dim, _join=torch.stack)


def _enter_selection(*operations: Callable[..., Any]) -> None:
    for operation in operations:

        @rule(operation)
        def select(input: Any, *args: Any, _operation: Any = operation, **kwargs: Any) -> Any:
            """Elements chosen or repeated: each keeps its mean and its variance."""
            if not isinstance(input, GaussianTensor) or any(isinstance(a, GaussianTensor) for a in args):
                return NotImplemented
            mean = _operation(input.mean_value, *args, **kwargs)
            return input.like(mean, _operation(input.variance, *args, **kwargs), _view(input, _operation, args, kwargs))


def _view(input: GaussianTensor, operation: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return lambda values: torch.func.vmap(lambda d: operation(d, *args, **kwargs))(input.at(values))


_enter_selection(T.expand, T.expand_as, torch.broadcast_to, T.broadcast_to, T.repeat, T.__getitem__)
_enter_selection(torch.index_select, T.index_select, torch.gather, T.gather, torch.roll, T.roll)


@rule(torch.broadcast_tensors)
def broadcast_tensors(*tensors: Any) -> Any:
    """Each argument in the common shape."""
    shape = torch.broadcast_shapes(*(one.shape for one in tensors))
    return tuple(one.expand(shape) for one in tensors)


@rule(torch.where, T.where)
def where(condition: Tensor, input: Any, other: Any) -> Any:
    """Elements of one or the other; a weight some of whose elements are constants is a weight."""
    (m, v), (n, w) = moments_of(input), moments_of(other)
    mean = torch.where(condition, m, n)
    variance = torch.where(condition, v, w) + torch.zeros_like(mean)
    like = _like(input, other)
    if not hasattr(like, "noise"):
        return like.like(mean, variance)
    return GaussianTensor(mean, variance, independent_noise(mean, variance), like.on_unknown, None, like.sampled)


@rule(torch.masked_fill, T.masked_fill)
def masked_fill(input: Any, mask: Tensor, value: Any) -> Any:
    """Elements that are constants have variance 0."""
    return input.like(input.mean_value.masked_fill(mask, value), input.variance.masked_fill(mask, 0.0))


def _enter_constants(*operations: Callable[..., Any]) -> None:
    for operation in operations:

        @rule(operation)
        def constant(input: Any, *args: Any, _operation: Any = operation, **kwargs: Any) -> Any:
            return _operation(input.mean_value, *args, **kwargs)


_enter_constants(T.new_ones, T.new_zeros, T.new_tensor, torch.zeros_like, torch.ones_like)


@rule(torch.sum, T.sum)
def total(input: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums of means and of variances."""
    if input.sums_to_one is not None and (*args, *kwargs.values())[:1] == (input.sums_to_one,):
        return input.mean_value.sum(*args, **kwargs)  # by which Categorical(probs) divides
    return input.like(input.mean_value.sum(*args, **kwargs), input.variance.sum(*args, **kwargs))


@rule(torch.mean, T.mean)
def average(input: Any, *args: Any, **kwargs: Any) -> Any:
    """The mean of independent elements: its variance is that of their sum over their number squared."""
    mean = input.mean_value.mean(*args, **kwargs)
    number = input.mean_value.numel() / max(1, mean.numel())
    return input.like(mean, input.variance.mean(*args, **kwargs) / number)


@rule(torch.logsumexp, T.logsumexp)
def logsumexp(input: Any, dim: Any, keepdim: bool = False) -> Tensor:
    """At the mean, a constant: a softmax does not depend on what is subtracted from all of its logits."""
    return input.mean_value.logsumexp(dim, keepdim)


@rule(F.softmax, torch.softmax, T.softmax)
def softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """The softmax at the mean, without a variance inside the net (the weights of attention); drawn at a likelihood."""
    if dim is None:
        return NotImplemented
    mean = input.mean_value.softmax(dim)
    axis = dim if dim < 0 else dim - input.dim()
    result = input.like(mean, torch.zeros_like(mean), lambda values: input.at(values).softmax(axis))
    result.sums_to_one = axis
    return result


@rule(F.log_softmax, torch.log_softmax, T.log_softmax)
def log_softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """``x - logsumexp(x)``, the latter at the mean; drawn at a likelihood."""
    if dim is None:
        return NotImplemented
    axis = dim if dim < 0 else dim - input.dim()
    mean = input.mean_value.log_softmax(dim)
    return input.like(mean, input.variance, lambda values: input.at(values).log_softmax(axis))


def maximum_of_two(m: Tensor, v: Tensor, n: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the larger of two independent Gaussians, which is read as a Gaussian in what follows.

    References:
        Clark 1961, doi:10.1287/opre.9.2.145, equations 1 and 2.
    """
    spread = (v + w).clamp_min(torch.finfo(m.dtype).tiny).sqrt()
    a = (m - n) / spread
    cdf, density = torch.special.ndtr(a), torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    first = m * cdf + n * (1 - cdf) + spread * density
    second = (m.square() + v) * cdf + (n.square() + w) * (1 - cdf) + (m + n) * spread * density
    return first, at_least_zero(second - first.square())


@rule(torch.maximum, torch.max, T.max)
def maximum(input: Any, other: Any = None) -> Any:
    """Element by element, as :func:`maximum_of_two`."""
    if not isinstance(other, Tensor):
        return NotImplemented
    (m, v), (n, w) = moments_of(input), moments_of(other)
    zero = torch.zeros_like(m + n)
    return _like(input, other).like(*maximum_of_two(m, v + zero, n, w + zero))


def maximum_over(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over the last axis, two at a time, in a tree."""
    while mean.shape[-1] > 1:
        half = mean.shape[-1] // 2
        pairs = maximum_of_two(mean[..., :half], variance[..., :half], mean[..., half : 2 * half],
                               variance[..., half : 2 * half])  # fmt: skip
        mean, variance = (
            torch.cat([new, old[..., 2 * half :]], -1) for new, old in zip(pairs, (mean, variance), strict=True)
        )
    return mean[..., 0], variance[..., 0]
