"""The contract of local reparameterization as one table: every call of a linear operation that has a rule.

Each case carries its own slow answer: ``terms`` walks in explicit loops over every (output element, weight
element) pair and says with which coefficient the weight enters the output. From independent weights,

    mean[out] = sum of coefficient * loc,   variance[out] = sum of coefficient**2 * variance
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_vd as vd
from helpers.weights import random_weight

Index = tuple[int, ...]
Terms = Iterator[tuple[Index, float, Index]]  # output element, coefficient, weight element
BIASES = ("none", "deterministic", "random", "only random")


@dataclass(frozen=True)
class Case:
    """One call ``call(x, weight, bias)``; ``bias`` is the shape of a bias, None where the call has none."""

    name: str
    call: Callable[[Any, Any, Any], Tensor]
    terms: Callable[[np.ndarray], Terms]
    x: Index
    weight: Index
    bias: Index | None = None
    bias_axis: int | None = None  # of the output, for a convolution; otherwise the bias broadcasts
    scales: tuple[float, float] = (1.0, 1.0)  # of the bias and of the product
    example: int | None = 0  # the axis of x that holds the examples, None without one
    biases: tuple[str, ...] = BIASES
    rows: int | None = None  # x chooses rows of the weight, of which there are so many
    out_example: int | None = None  # the axis of the output that holds the examples, if it is another than of x

    @property
    def draws_axis(self) -> int:
        """The axis of the examples in a stack of outputs."""
        axis = self.example if self.out_example is None else self.out_example
        assert axis is not None
        return axis + 1

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """x (its first two examples equal), loc, variance, and mean and variance of the bias."""
        make = torch.Generator().manual_seed(len(self.name) + 17 * sum(self.x) + sum(self.weight))
        shapes = (self.x, self.weight, self.weight)
        x, loc, scale = (torch.randn(shape, generator=make, dtype=torch.float64) for shape in shapes)
        if self.rows is not None:
            x = torch.randint(self.rows, self.x, generator=make)
        if self.example is not None:
            x.select(self.example, 1).copy_(x.select(self.example, 0))
        if self.bias is None:
            return x, loc, scale.square(), None, None
        bias, bias_scale = (torch.randn(self.bias, generator=make, dtype=torch.float64) for _ in range(2))
        return x, loc, scale.square(), bias, bias_scale.square()

    def build(self, kind: str, estimator: str = "local") -> tuple[Tensor, Any, Any, Tensor, Tensor]:
        """x, weight and bias of a call with this kind of bias; its mean and variance by explicit loops."""
        x, loc, variance, bias_loc, bias_variance = self.inputs()
        if kind == "none":
            bias_loc = bias_variance = None
        mean, out_variance = self._loop_moments(kind, x, loc, variance, bias_loc, bias_variance)
        weight = loc if kind == "only random" else random_weight(loc, variance, estimator)
        random_bias = kind.endswith("random")
        bias = random_weight(bias_loc, bias_variance, estimator, site="b") if random_bias else bias_loc
        return x, weight, bias, mean, out_variance

    def _loop_moments(self, kind: str, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor]:
        shape = self.call(x, parameters[0], parameters[2]).shape
        mean, out_variance = np.zeros((2, *shape))
        loc, variance, bias_loc, bias_variance = (None if p is None else p.numpy() for p in parameters)
        for out, coefficient, weight in self.terms(x.numpy()):
            coefficient = self.scales[1] * coefficient
            mean[out] += coefficient * loc[weight]
            out_variance[out] += 0.0 if kind == "only random" else coefficient**2 * variance[weight]
        if bias_loc is not None:
            for out in product(*map(range, shape)):
                trailing = out[self.bias_axis :][:1] if self.bias_axis is not None else out[len(out) - bias_loc.ndim :]
                bias = tuple(i if size > 1 else 0 for i, size in zip(trailing, bias_loc.shape, strict=True))
                mean[out] += self.scales[0] * bias_loc[bias]
                out_variance[out] += self.scales[0] ** 2 * bias_variance[bias] if kind.endswith("random") else 0.0
        return torch.from_numpy(mean), torch.from_numpy(out_variance)


def _linear_terms(x: np.ndarray) -> Terms:
    for row in product(*map(range, x.shape[:-1])):
        for i, j in product(range(x.shape[-1]), range(2)):
            yield (*row, j), float(x[*row, i]), (j, i)


def _right_terms(x: np.ndarray) -> Terms:
    for out, coefficient, (j, i) in _linear_terms(x):
        yield out, coefficient, (i, j)


def _stacked_terms(x: np.ndarray) -> Terms:
    for out, coefficient, (j, i) in _linear_terms(x):
        yield out, coefficient, (out[0], i, j)


def _left_terms(x: np.ndarray) -> Terms:
    for column in product(*map(range, x.shape[1:])):
        for i, j in product(range(x.shape[0]), range(2)):
            yield (j, *column), float(x[i, *column]), (j, i)


def _source(i: int, size: int, mode: str) -> int | None:
    """Where the padded position ``i`` is read from; None for a padding zero."""
    if 0 <= i < size:
        return i
    if mode == "reflect":
        return -i if i < 0 else 2 * (size - 1) - i
    return {"zeros": None, "replicate": min(max(i, 0), size - 1), "circular": i % size}[mode]


def _conv_terms(spatial: int, out_channels: int, kernel: int, stride: Index, padding: Any, dilation: int, groups: int,
                mode: str) -> Callable[[np.ndarray], Terms]:  # fmt: skip
    def terms(x: np.ndarray) -> Terms:
        if x.ndim == spatial + 1:
            yield from ((out[1:], coefficient, weight) for out, coefficient, weight in terms(x[None]))
            return
        reach = dilation * (kernel - 1)
        before, total = {"same": (reach // 2, reach), "valid": (0, 0)}.get(padding, (padding, 2 * padding))  # type: ignore
        sizes, per_group = x.shape[2:], x.shape[1] // groups
        outs = [(size + total - reach - 1) // step + 1 for size, step in zip(sizes, stride, strict=True)]
        taps = list(product(range(kernel), repeat=spatial))
        for n, o, c in product(range(len(x)), range(out_channels), range(per_group)):
            for position, tap in product(product(*map(range, outs)), taps):
                at = [p * s + t * dilation - before for p, s, t in zip(position, stride, tap, strict=True)]
                read = [_source(i, size, mode) for i, size in zip(at, sizes, strict=True)]
                if None not in read:
                    channel = o // (out_channels // groups) * per_group + c
                    yield (n, o, *position), float(x[n, channel, *read]), (o, c, *tap)

    return terms


def _conv(spatial: int, name: str, form: str = "positional", batched: bool = True, mode: str = "zeros", kernel: int = 2,
          stride: Any = 1, padding: Any = 0, dilation: int = 1, groups: int = 1) -> Case:  # fmt: skip
    operation: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[spatial]

    def as_module(bias: bool) -> vd.BayesianModule:
        net = layer(2, 2, kernel, bias=bias, padding_mode=mode, **options).double()
        return vd.BayesianModule(net, dist.Normal(0.0, 1.0), where="*")

    modules = [as_module(bias) for bias in (False, True)] if form == "module" else []

    def call(x: Any, weight: Any, bias: Any) -> Tensor:
        if form == "module":
            values = {"net.weight": weight, "net.bias": bias}
            return pyro.condition(modules[bias is not None], data=values)(x)
        if form == "keyword":
            return operation(input=x, weight=weight, bias=bias, **options)
        if form == "mixed":
            return operation(x, weight, bias=bias, **options)
        return operation(x, weight, bias, *options.values())

    x = (2, 2, *(3, 4, 2)[:spatial]) if spatial > 1 else (2, 2, 5)
    x = x if mode == "zeros" else (2, 2, *(3,) * spatial)
    steps = stride if isinstance(stride, tuple) else (stride,) * spatial
    terms = _conv_terms(spatial, 2, kernel, steps, padding, dilation, groups, mode)
    return Case(
        f"conv{spatial}d {name}", call, terms, x if batched else x[1:], (2, 2 // groups, *(kernel,) * spatial), (2,),
        bias_axis=-spatial - 1, example=0 if batched else None)  # fmt: skip


def _linears() -> Iterator[Case]:
    shape = {"weight": (2, 3), "bias": (2,)}
    for batch in ((), (3,), (2, 3), (2, 1, 3)):
        example = 0 if batch else None
        yield Case(f"F.linear {batch}", F.linear, _linear_terms, (*batch, 3), **shape, example=example)
    forms = {
        "keyword": lambda x, w, b: F.linear(input=x, weight=w, bias=b),
        "mixed": lambda x, w, b: F.linear(x, weight=w, bias=b),
    }
    for form, call in forms.items():
        yield Case(f"F.linear {form}", call, _linear_terms, (3, 3), **shape)


def _products() -> Iterator[Case]:
    right: dict[str, Callable[..., Tensor]] = {
        "x @ w": lambda x, w, b: x @ w,
        "matmul": lambda x, w, b: torch.matmul(x, w),
        "matmul keyword": lambda x, w, b: torch.matmul(input=x, other=w),
        "x.matmul": lambda x, w, b: x.matmul(other=w),
        "mm": lambda x, w, b: torch.mm(x, w),
        "mm keyword": lambda x, w, b: torch.mm(input=x, mat2=w),
        "x.mm": lambda x, w, b: x.mm(w),
        "__rmatmul__": lambda x, w, b: w.__rmatmul__(x),
    }
    left: dict[str, Callable[..., Tensor]] = {
        "w @ x": lambda x, w, b: w @ x,
        "matmul(w, x)": lambda x, w, b: torch.matmul(w, x),
        "mm(w, x)": lambda x, w, b: torch.mm(w, mat2=x),
    }
    vector: dict[str, Callable[..., Tensor]] = {
        "w @ vector": lambda x, w, b: w @ x,
        "mv": lambda x, w, b: torch.mv(w, x),
        "mv keyword": lambda x, w, b: torch.mv(input=w, vec=x),
        "w.mv": lambda x, w, b: w.mv(x),
    }
    only: dict[str, Any] = {"biases": ("none",)}
    for name, call in right.items():
        yield Case(name, call, _right_terms, (3, 3), (3, 2), **only)
    for batch in ((), (2, 3)):
        example = 0 if batch else None
        yield Case(f"x @ w {batch}", right["x @ w"], _right_terms, (*batch, 3), (3, 2), example=example, **only)
    yield Case("x @ stacked w", right["x @ w"], _stacked_terms, (2, 3, 3), (2, 3, 2), example=None, **only)
    for name, call in left.items():
        yield Case(name, call, _left_terms, (3, 2), (2, 3), example=1, **only)
    for name, call in vector.items():
        yield Case(name, call, _left_terms, (3,), (2, 3), example=None, **only)


def _addmms() -> Iterator[Case]:
    with_bias = BIASES[1:]
    forms: dict[str, Callable[..., Tensor]] = {
        "addmm": lambda x, w, b: torch.addmm(b, x, w),
        "addmm keyword": lambda x, w, b: torch.addmm(input=b, mat1=x, mat2=w),
        "b.addmm": lambda x, w, b: b.addmm(x, mat2=w),
    }
    for name, call in forms.items():
        yield Case(name, call, _right_terms, (3, 3), (3, 2), (2,), biases=with_bias)
    for bias in ((3, 2), (1, 2)):
        yield Case(f"addmm {bias}", forms["addmm"], _right_terms, (3, 3), (3, 2), bias, biases=with_bias)
    scaled = {
        "addmm alpha beta": lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=-3),
        "addmm(b, w, x)": lambda x, w, b: torch.addmm(b, w, x, beta=0.5, alpha=-3),
    }
    shared: dict[str, Any] = {"scales": (0.5, -3.0), "biases": with_bias}
    yield Case("addmm alpha beta", scaled["addmm alpha beta"], _right_terms, (3, 3), (3, 2), (2,), **shared)
    # A bias of one column is one of output units only where the weight is on the left.
    shared["biases"] = with_bias[:-1]
    yield Case("addmm(b, w, x)", scaled["addmm(b, w, x)"], _left_terms, (3, 2), (2, 3), (2, 1), example=1, **shared)


def _convs() -> Iterator[Case]:
    for d in (1, 2, 3):
        yield _conv(d, "plain")
        yield _conv(d, "stride and padding", stride=2, padding=1)
        yield _conv(d, "stride per axis", form="keyword", stride=(2, 1, 1)[:d], padding=1)
        yield _conv(d, "same", form="mixed", kernel=3, padding="same", dilation=2 if d < 3 else 1)
        yield _conv(d, "valid", form="keyword", padding="valid")
        yield _conv(d, "groups and dilation", groups=2, padding=1, dilation=2)
        yield _conv(d, "unbatched", batched=False)
        for mode in ("zeros", "reflect", "replicate", "circular"):
            yield _conv(d, f"module {mode}", form="module", mode=mode, padding=1)
        yield _conv(d, "module same circular", form="module", mode="circular", kernel=3, padding="same")


CASES = {case.name: case for make in (_linears, _products, _addmms, _convs) for case in make()}
