"""One function on both sides: the same numbers and the same gradients, in both precisions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch

import helpers.mirror_compiling  # noqa: F401

DTYPES = {"float64": 1e-6, "float32": 1e-5}


def torch_and_gradients(function, p):
    """``function`` of tensors, and the gradient of the weighted sum of its results in every parameter."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in p.items()}
    results = function(tensors)
    total = sum((i * weighted(r.detach().numpy(), torch.tensor) * r).sum() for i, r in enumerate(results, 1))
    gradients = torch.autograd.grad(total, list(tensors.values()), allow_unused=True) if total.requires_grad else ()
    zeros = [np.zeros_like(value) for value in p.values()]
    found = [z if g is None else g.numpy() for g, z in zip(gradients or [None] * len(p), zeros, strict=True)]
    return [r.detach().numpy() for r in results], dict(zip(p, found, strict=True))


def jax_and_gradients(function, p):
    def total(arrays):
        results = function(arrays)
        return sum((i * weighted(r, jnp.asarray) * r).sum() for i, r in enumerate(results, 1)), results

    gradients, results = jax.jit(jax.grad(total, has_aux=True))({name: jnp.asarray(v) for name, v in p.items()})
    return results, gradients


def weighted(result, make):
    """Weights of a sum: different ones, so that no element hides behind another."""
    size = math.prod(result.shape)
    return make(np.cos(np.arange(size)).reshape(result.shape).astype(result.dtype))


def assert_same(p, dtype, our_function, their_function):
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        found, their_gradients = jax_and_gradients(their_function, p)
    expected, our_gradients = torch_and_gradients(our_function, p)
    # Relative to the size of the tensor: an element that is a small difference of large terms (a moment plus its noise,
    # a gradient over a sum) keeps their absolute error, which is larger than 1e-5 of itself in single precision.
    for got, value in zip(found, expected, strict=True):
        assert got.dtype == dtype and got.shape == value.shape
        np.testing.assert_allclose(got, value, rtol=DTYPES[dtype], atol=DTYPES[dtype] * np.abs(value).max() / 10)
    for name, value in our_gradients.items():
        atol = DTYPES[dtype] * max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(their_gradients[name], value, rtol=DTYPES[dtype], atol=atol, err_msg=name)
