"""Moments through pooling, normalisation and dropout in evaluation, and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vd.predict.moments.combinations import maximum_over
from pyro_vd.predict.moments.gaussian import GaussianTensor, moments_of, rule

T: Any = Tensor


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """In evaluation, nothing."""
    return NotImplemented if training and p else input


def _pair(value: Any, spatial: int) -> tuple[int, ...]:
    return (value,) * spatial if isinstance(value, int) else tuple(value) * (spatial if len(value) == 1 else 1)


def _average_pool(operation: Any, spatial: int) -> None:
    @rule(operation)
    def average(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
                count_include_pad: bool = True, divisor_override: Any = None) -> Any:  # fmt: skip
        """The mean of a window: its variance is that of the sum, over the number of elements squared."""
        padded = any(_pair(padding, spatial))
        if ceil_mode or (padded and not count_include_pad) or divisor_override is not None:
            return NotImplemented
        sizes = (kernel_size, kernel_size if stride is None else stride, padding)
        number = math.prod(_pair(kernel_size, spatial))
        return input.like(operation(input.mean_value, *sizes), operation(input.variance, *sizes) / number)


for _spatial, _operation in enumerate((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), start=1):
    _average_pool(_operation, _spatial)


def _adaptive_pool(operation: Any, spatial: int) -> None:
    @rule(operation)
    def adaptive(input: Any, output_size: Any) -> Any:
        """Where the windows are equal; a window is ``input size / output size`` long."""
        sizes = input.shape[-spatial:]
        wanted = [n if w is None else w for w, n in zip(_pair(output_size, spatial), sizes, strict=True)]
        if any(n % w for n, w in zip(sizes, wanted, strict=True)):
            return NotImplemented
        number = math.prod(sizes) // math.prod(wanted)
        return input.like(operation(input.mean_value, wanted), operation(input.variance, wanted) / number)


for _spatial, _operation in enumerate((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), start=1):
    _adaptive_pool(_operation, _spatial)


@rule(torch.max_pool1d, F.max_pool1d, torch.max_pool2d, F.max_pool2d)
def max_pool(input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> Any:  # fmt: skip
    """The maximum of a window, two at a time (Clark 1961): exact for two, their order counts for more."""
    if ceil_mode or return_indices:
        return NotImplemented
    spatial = input.dim() - 2
    if spatial not in (1, 2):
        return NotImplemented
    kernel, pad, gaps = _pair(kernel_size, spatial), _pair(padding, spatial), _pair(dilation, spatial)
    step = kernel if stride is None or stride == [] else _pair(stride, spatial)
    edges = [edge for one in reversed(pad) for edge in (one, one)]
    low = torch.finfo(input.dtype).min ** 0.25  # squares of it stay finite; no window is of it alone
    mean = F.pad(input.mean_value, edges, value=-abs(low)) if any(pad) else input.mean_value
    variance = F.pad(input.variance, edges) if any(pad) else input.variance
    windows = []
    for part in (mean, variance):
        for axis in range(spatial):
            reach = gaps[axis] * (kernel[axis] - 1) + 1
            part = part.unfold(2 + axis, reach, step[axis])[..., :: gaps[axis]]
        windows.append(part.flatten(2 + spatial))
    return input.like(*maximum_over(*windows))


@rule(F.batch_norm)
def batch_norm(input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
               training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Any:  # fmt: skip
    """In evaluation, a scale and a shift of every channel; in training the statistics are random: not covered."""
    if training or running_var is None or isinstance(weight, GaussianTensor) or isinstance(bias, GaussianTensor):
        return NotImplemented
    mean = F.batch_norm(input.mean_value, running_mean, running_var, weight, bias, False, momentum, eps)
    scale = (1.0 if weight is None else weight) / (running_var + eps).sqrt()
    return input.like(mean, input.variance * scale.square().reshape(-1, *[1] * (input.dim() - 2)))


@rule(F.layer_norm)
def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """At the expected statistics of each example: their randomness is dropped.

    ``mean(m)`` and ``var(m) + (1 - 1 / n) * mean(v)``, over the n normalised elements.
    """
    if isinstance(weight, GaussianTensor) or isinstance(bias, GaussianTensor):
        return NotImplemented
    axes = tuple(range(-len(normalized_shape), 0))
    m, v, number = input.mean_value, input.variance, math.prod(normalized_shape)
    spread = m.var(axes, unbiased=False, keepdim=True) + (1 - 1 / number) * v.mean(axes, keepdim=True) + eps
    scale = (1.0 if weight is None else weight) / spread.sqrt()
    mean = (m - m.mean(axes, keepdim=True)) * scale
    return input.like(mean if bias is None else mean + bias, v * scale**2)


@rule(F.scaled_dot_product_attention)
def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
              is_causal: bool = False, scale: float | None = None) -> Any:  # fmt: skip
    """The softmax at the means of query and key, without a variance; a weighted mean of the values."""
    (q, _), (k, _), (v, v_variance) = (moments_of(one) for one in (query, key, value))
    like = next(one for one in (value, query, key) if isinstance(one, GaussianTensor))
    if dropout_p or isinstance(attn_mask, GaussianTensor):
        return NotImplemented
    mean = F.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, scale=scale)
    length = k.shape[-2]
    eye = torch.eye(length, dtype=v.dtype, device=v.device).expand(*k.shape[:-2], length, length)
    weights = F.scaled_dot_product_attention(q, k, eye, attn_mask, 0.0, is_causal, scale=scale)
    variance = weights.square() @ v_variance if isinstance(v_variance, Tensor) else torch.zeros_like(mean)
    return like.like(mean, variance)
