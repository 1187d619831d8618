"""Calls of linear operations on a random weight in JAX: bare functions, and the layers of Flax and Equinox.

A case carries no answer of its own. Any ``call(x, weight)`` linear in its weight has, with independent weights,

    mean = call(x, loc),   variance[out] = sum over weights of (d call[out] / d weight)**2 * variance

where the Jacobian is JAX's, of the unmodified call on an ordinary array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import quax
from flax import linen, nnx
from jax import lax

import helpers.mirror_compiling  # noqa: F401
import pyro_vd.numpyro as vd
from pyro_vd.numpyro.estimators import WeightNoise
from pyro_vd.numpyro.weights import WeightState

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Case:
    """One call; ``example`` is the axis of examples of x and of the output, None where there is none."""

    name: str
    call: Callable[[Any, Any], Any]
    x: tuple[int, ...]
    weight: tuple[int, ...]
    example: tuple[int, int] | None = (0, 0)
    indices: int | None = None  # x are whole numbers below this one
    terms: str = "dot_general"  # the primitive that the call comes down to

    def inputs(self, dtype: Any = float) -> tuple[Any, Any, Any]:
        """x, loc and variance."""
        keys = jax.random.split(jax.random.fold_in(KEY, len(self.name) + 31 * sum(self.x)), 3)
        loc, scale = (jax.random.normal(key, self.weight, dtype) for key in keys[:2])
        if self.indices is not None:
            return jax.random.randint(keys[2], self.x, 0, self.indices), loc, scale**2
        return jax.random.normal(keys[2], self.x, dtype), loc, scale**2

    def moments(self, x: Any, loc: Any, variance: Any) -> tuple[Any, Any]:
        """Mean and variance of every element of the output, from the Jacobian."""
        jacobian = jax.jacobian(lambda weight: self.call(x, weight))(loc)
        return self.call(x, loc), jnp.tensordot(jacobian**2, variance, axes=variance.ndim)

    def __call__(self, x: Any, weight: Any) -> Any:
        return quax.quaxify(self.call)(x, weight)


def random_weight(loc: Any, variance: Any, estimator: str = "local", site: str = "w", **options: Any):
    """A random weight with independent elements, outside any guide; strict."""
    return weight_of(WeightNoise(loc, variance), estimator, site, **options)


def weight_of(noise: WeightNoise, estimator: str = "local", site: str = "w", **options: Any):
    """A random weight of any noise, outside any guide; strict, unless said otherwise."""
    state = WeightState(site, estimator, **{"strict": True} | options)
    variance = jnp.zeros_like(noise.loc) if noise.variance is None else noise.variance
    return vd.RandomWeight(noise, variance, jax.random.key(7), state)


def make(*shape: int, seed: int = 0, **options: Any):
    """A random weight of that shape."""
    loc, scale = jax.random.normal(jax.random.key(seed), (2, *shape))
    return random_weight(loc, scale**2, **options)


def inside(function: Callable, *args: Any) -> Any:
    return quax.quaxify(function)(*args)


def keyed(weight: Any, key: Any):
    """The same random weight with another key, in a state of its own."""
    return vd.RandomWeight(weight.noise, weight.variance, key, type(weight.state)("w"))


def _products() -> Iterator[Case]:
    for batch in ((), (3,), (2, 3)):
        example = (0, 0) if batch else None
        yield Case(f"x @ w {batch}", lambda x, w: x @ w, (*batch, 4), (4, 2), example)
        yield Case(f"x @ w.T {batch}", lambda x, w: x @ w.T, (*batch, 4), (2, 4), example)
    yield Case("w @ x", lambda x, w: w @ x, (4, 3), (2, 4), (1, 1))
    yield Case("w @ vector", lambda x, w: w @ x, (4,), (2, 4), None)
    yield Case("x @ vector", lambda x, w: x @ w, (3, 4), (4,))
    yield Case("vmap w @ x", lambda x, w: jax.vmap(lambda row: w @ row)(x), (3, 4), (2, 4))
    yield Case("vmap x @ w", lambda x, w: jax.vmap(lambda row: row @ w, 1, 1)(x), (4, 3), (4, 2), None)
    yield Case("dot", lambda x, w: jnp.dot(x, w), (3, 4), (4, 2))
    yield Case("tensordot", lambda x, w: jnp.tensordot(x, w, ((1, 2), (1, 0))), (3, 4, 2), (2, 4, 5))
    yield Case("einsum oi", lambda x, w: jnp.einsum("bi,oi->bo", x, w), (3, 4), (2, 4))
    yield Case("einsum heads", lambda x, w: jnp.einsum("bti,ihd->bthd", x, w), (3, 2, 4), (4, 2, 3))
    yield Case("einsum two sums", lambda x, w: jnp.einsum("bthd,hdo->bto", x, w), (3, 2, 2, 3), (2, 3, 4))
    yield Case("stacked", lambda x, w: x @ w, (2, 3, 4), (2, 4, 5), None)
    yield Case("einsum stacked", lambda x, w: jnp.einsum("bhi,hio->bho", x, w), (3, 2, 4), (2, 4, 5), None)
    yield Case("jit", lambda x, w: jax.jit(jax.jit(lambda w, x: x @ w))(w, x), (3, 4), (4, 2))
    yield Case("scaled rows of a reshape", lambda x, w: x @ (2 * w.reshape(6, 2)[1:5] / -3), (3, 4), (3, 4))
    yield Case("half of a split", lambda x, w: x @ jnp.split(w, 2, 1)[1], (3, 4), (4, 6))


def _conv(name: str, rank: int, layout: str, x: tuple, weight: tuple, **options: Any) -> Case:
    spatial = "HWD"[:rank]
    names = {"NC": (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}"), "NHWC": (f"N{spatial}C", f"{spatial}IO") * 2}
    numbers = names[layout][:3] if layout == "NC" else (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    options = {"window_strides": (1,) * rank, "padding": "VALID"} | options

    def call(x, w):
        return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)

    return Case(f"conv{rank}d {layout} {name}", call, x, weight, terms="conv_general_dilated")


def _convs() -> Iterator[Case]:
    for rank in (1, 2, 3):
        side, kernel = (4, 3, 2)[:rank], (2,) * rank
        for layout, x, w in (
            ("NC", (2, 2, *side), (4, 2, *kernel)),
            ("NHWC", (2, *side, 2), (*kernel, 2, 4)),
        ):
            grouped = (4, 1, *kernel) if layout == "NC" else (*kernel, 1, 4)
            yield _conv("groups", rank, layout, x, grouped, feature_group_count=2)
            if rank != 2:
                continue
            yield _conv("plain", rank, layout, x, w)
            yield _conv("stride and padding", rank, layout, x, w, window_strides=(2,) * rank, padding=((1, 1),) * rank)
            yield _conv("dilation", rank, layout, x, w, rhs_dilation=(2,) * rank, padding="SAME")
            spread = {"lhs_dilation": (2,) * rank, "padding": ((1, 0),) * rank}
            yield _conv("dilated input", rank, layout, x, w, **spread)
    for kernel in (False, True):
        yield Case(
            f"conv_transpose {kernel}",
            lambda x, w, kernel=kernel: lax.conv_transpose(x, w, (2, 2), "SAME", transpose_kernel=kernel),
            (2, 3, 3, 2),
            (2, 2, 2, 2),
            terms="conv_general_dilated",
        )


def _lookups() -> Iterator[Case]:
    forms = {
        "take": lambda x, w: jnp.take(w, x, axis=0),
        "take clip": lambda x, w: jnp.take(w, x, axis=0, mode="clip"),
        "index": lambda x, w: w[x],
        "vmap index": lambda x, w: jax.vmap(lambda i: w[i])(x),
    }
    for name, call in forms.items():
        for shape in ((3,), (3, 2)):
            yield Case(f"{name} {shape}", call, shape, (5, 4), indices=5, terms="gather")
    yield Case("take columns", lambda x, w: jnp.take(w, x, axis=1), (3,), (4, 5), (0, 1), indices=5, terms="gather")


def _sums() -> Iterator[Case]:
    for x, b in (((3, 4), (4,)), ((2, 3, 4), (4,)), ((3, 4), (1, 4)), ((1, 4), (1, 4)), ((2, 3, 4), (3, 4))):
        yield Case(f"x + b {x} {b}", lambda x, b: x + b, x, b, terms="add")
    yield Case("vector + b", lambda x, b: x + b, (4,), (4,), None, terms="add")
    yield Case("b + x", lambda x, b: b + x, (3, 4), (4,), terms="add")
    yield Case("x - b", lambda x, b: x - b, (3, 4), (4,), terms="add")
    yield Case("vmap x + b", lambda x, b: jax.vmap(lambda row: row + b)(x), (3, 4), (4,), terms="add")
    channels = {"terms": "add"}
    yield Case("channels first", lambda x, b: x + b, (2, 4, 3, 3), (4, 1, 1), **channels)
    yield Case("channels last", lambda x, b: x + b.reshape(1, 1, 1, -1), (2, 3, 3, 4), (4,), **channels)


def _like(weight: Any, parameters: Any) -> Any:
    return jax.tree.map(lambda p: p.astype(weight.dtype) if eqx.is_inexact_array(p) else p, parameters)


def _linen(name: str, layer: Any, x: tuple, parameter: str = "kernel", terms: str = "dot_general", **options) -> Case:
    inputs = jnp.zeros(x, int if options.get("indices") else None)
    variables = layer.init(KEY, inputs)["params"]

    def call(x, w):
        return layer.apply({"params": _like(w, variables) | {parameter: w}}, x)

    return Case(f"linen {name} {parameter}", call, x, variables[parameter].shape, terms=terms, **options)


def _nnx(name: str, layer: Any, x: tuple, parameter: str = "kernel", terms: str = "dot_general", **options) -> Case:
    graph, state = nnx.split(layer)
    values = nnx.to_pure_dict(state)

    def call(x, w):
        new = nnx.clone(state)
        nnx.replace_by_pure_dict(new, _like(w, values) | {parameter: w})
        return nnx.merge(graph, new)(x)

    return Case(f"nnx {name} {parameter}", call, x, values[parameter].shape, terms=terms, **options)


def _equinox(name: str, layer: Any, x: tuple, parameter: str = "weight", terms: str = "dot_general", **options) -> Case:
    def call(x, w):
        return jax.vmap(eqx.tree_at(lambda layer: getattr(layer, parameter), _like(w, layer), w))(x)

    return Case(f"equinox {name} {parameter}", call, x, getattr(layer, parameter).shape, terms=terms, **options)


def _layers() -> Iterator[Case]:
    conv: dict[str, Any] = {"terms": "conv_general_dilated"}
    table: dict[str, Any] = {"terms": "gather", "indices": 5}
    bias: dict[str, Any] = {"parameter": "bias", "terms": "add"}
    image, rngs = (2, 4, 4, 2), nnx.Rngs(0)
    for how in ({}, bias):
        yield _linen("Dense", linen.Dense(2), (3, 2, 4), **how)
        yield _linen("Conv", linen.Conv(4, (3, 3), feature_group_count=2), image, **conv | how)
        yield _equinox("Linear", eqx.nn.Linear(4, 2, key=KEY), (3, 4), **how)
        yield _equinox("Conv2d", eqx.nn.Conv2d(2, 4, 3, groups=2, key=KEY), (2, 2, 4, 4), **conv | how)
    yield _linen("DenseGeneral", linen.DenseGeneral((2, 3), axis=(-2, -1)), (3, 4, 2))
    yield _linen("ConvTranspose", linen.ConvTranspose(3, (2, 2), strides=(2, 2)), image, **conv)
    yield _nnx("Linear", nnx.Linear(4, 2, rngs=rngs), (3, 4))
    yield _nnx("LinearGeneral", nnx.LinearGeneral((4, 2), (3,), axis=(-2, -1), rngs=rngs), (3, 4, 2), **bias)
    yield _nnx("Conv", nnx.Conv(2, 3, (3, 3), strides=2, rngs=rngs), image, **conv)
    yield _nnx("ConvTranspose", nnx.ConvTranspose(2, 3, (2, 2), strides=2, rngs=rngs), image, **conv)
    yield _equinox("Conv1d", eqx.nn.Conv1d(2, 3, 2, padding=1, key=KEY), (2, 2, 4), **conv)
    yield _equinox("ConvTranspose2d", eqx.nn.ConvTranspose2d(2, 3, 2, 2, key=KEY), (2, 2, 3, 3), **conv)
    yield _linen("Embed", linen.Embed(5, 3), (3, 2), "embedding", **table)
    yield _nnx("Embed", nnx.Embed(5, 3, dtype=np.float64, rngs=rngs), (3, 2), "embedding", **table)
    yield _equinox("Embedding", eqx.nn.Embedding(5, 3, key=KEY), (3,), **table)


CASES = {case.name: case for make in (_products, _convs, _lookups, _sums, _layers) for case in make()}
