"""The rest of the contract of ``layer_cases``: contractions, transposed convolutions, embeddings; the whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_vd as vd
from helpers.layer_cases import BIASES, Case, Index, Terms
from helpers.layer_cases import CASES as LAYER_CASES

NONE: dict[str, Any] = {"biases": ("none",)}
WITH_BIAS = BIASES[1:]


def contraction_terms(equation: str, *fixed: np.ndarray) -> Callable[[np.ndarray], Terms]:
    """Loops over every index of an einsum whose first operand is x, whose second is the weight, then ``fixed``."""
    left, out = equation.split("->")
    x_labels, weight_labels, *other_labels = left.split(",")

    def terms(x: np.ndarray) -> Terms:
        sizes = {label: size for labels, array in zip([x_labels, *other_labels], [x, *fixed], strict=True)
                 for label, size in zip(labels, array.shape, strict=True)}  # fmt: skip
        sizes = {**dict.fromkeys(weight_labels, 2), **sizes}
        for values in product(*(range(size) for size in sizes.values())):
            at = dict(zip(sizes, values, strict=True))
            coefficient = x[tuple(at[label] for label in x_labels)]
            for labels, array in zip(other_labels, fixed, strict=True):
                coefficient = coefficient * array[tuple(at[label] for label in labels)]
            yield tuple(at[i] for i in out), float(coefficient), tuple(at[i] for i in weight_labels)

    return terms


def summed_terms(terms: Callable[[np.ndarray], Terms]) -> Callable[[np.ndarray], Terms]:
    """The same terms, those of one (output, weight) pair added up: their squares do not add."""

    def summed(x: np.ndarray) -> Terms:
        totals: dict[tuple[Index, Index], float] = {}
        for out, coefficient, weight in terms(x):
            totals[out, weight] = totals.get((out, weight), 0.0) + coefficient
        yield from ((out, coefficient, weight) for (out, weight), coefficient in totals.items())

    return summed


def _contractions() -> Iterator[Case]:
    """Axes of the weight that are none of x have size 2."""
    other = torch.randn(2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    einsums: list[tuple[str, Index, Index, int | None, int | None]] = [
        ("bi,oi->bo", (3, 3), (2, 3), 0, 0),
        ("bi,io->ob", (3, 3), (3, 2), 0, 1),
        ("bhi,hio->bho", (3, 2, 3), (2, 3, 2), 0, 0),
        ("bij,ijo->bo", (3, 2, 2), (2, 2, 2), 0, 0),
        ("bi,oij->boj", (3, 3), (2, 3, 2), 0, 0),
        ("i,oi->o", (3,), (2, 3), None, None),
        ("bd,d->bd", (3, 2), (2,), 0, 0),
        ("bi,io->b", (3, 3), (3, 2), 0, 0),  # every weight of a column has one coefficient
    ]
    for equation, x, weight, example, out_example in einsums:
        call = {"einsum": lambda x, w, b, e=equation: torch.einsum(e, x, w)}
        if equation == "bi,oi->bo":
            call["einsum weight first"] = lambda x, w, b: torch.einsum("oi,bi->bo", w, x)
            call["einsum implicit"] = lambda x, w, b: torch.einsum("bi,oi", x, w)
            call["einsum sublist"] = lambda x, w, b: torch.einsum(x, [1, 0], w, [2, 0], [1, 2])
        if equation == "bhi,hio->bho":
            call["einsum ellipsis"] = lambda x, w, b: torch.einsum("b...i,...io->b...o", x, w)
        for name, one in call.items():
            yield Case(f"{name} {equation}", one, contraction_terms(equation), x, weight, example=example,
                       out_example=out_example, **NONE)  # fmt: skip
    # An index that is summed over but is not the weight's: coefficients add, then the square is taken.
    yield Case("einsum three operands", lambda x, w, b: torch.einsum("bti,io,to->bo", x, w, other.T),
               summed_terms(contraction_terms("bti,io,to->bo", other.T.numpy())), (3, 3, 2), (2, 2),
               **NONE)  # fmt: skip
    yield Case("einsum broadcast weight", lambda x, w, b: torch.einsum("bi,io->bo", x, w),
               summed_terms(_row_sum_terms), (3, 3), (1, 2), **NONE)  # fmt: skip
    yield Case("einsum diagonal of x", lambda x, w, b: torch.einsum("bii,io->bo", x, w),
               _diagonal_terms, (3, 2, 2), (2, 2), **NONE)  # fmt: skip
    yield Case("tensordot", lambda x, w, b: torch.tensordot(x, w, 2), contraction_terms("bij,ijo->bo"), (3, 2, 3),
               (2, 3, 2), **NONE)  # fmt: skip
    yield Case("tensordot axes", lambda x, w, b: torch.tensordot(w, x, dims=([1], [0])), contraction_terms("ib,oi->ob"),
               (3, 2), (2, 3), example=1, **NONE)  # fmt: skip
    yield Case("inner", lambda x, w, b: torch.inner(x, w), contraction_terms("bi,oi->bo"), (3, 3), (2, 3), **NONE)


def _row_sum_terms(x: np.ndarray) -> Terms:
    for b, i, o in product(range(x.shape[0]), range(x.shape[1]), range(2)):
        yield (b, o), float(x[b, i]), (0, o)


def _diagonal_terms(x: np.ndarray) -> Terms:
    for b, i, o in product(range(x.shape[0]), range(2), range(2)):
        yield (b, o), float(x[b, i, i]), (i, o)


def _batched_products() -> Iterator[Case]:
    right: list[tuple[str, Index, Index, int | None, int | None]] = [
        ("bhni,hio->bhno", (2, 2, 3, 3), (2, 3, 2), 0, 0),
        ("ni,hio->hno", (3, 3), (2, 3, 2), 0, 1),
        ("hni,hio->hno", (2, 3, 3), (2, 3, 2), 1, 1),
        ("bi,i->b", (3, 3), (3,), 0, 0),
    ]
    left: list[tuple[str, Index, Index, int | None, int | None]] = [
        ("bin,oi->bon", (2, 3, 2), (2, 3), 0, 0),
        ("in,hoi->hon", (3, 2), (2, 2, 3), 1, 2),
        ("bhin,hoi->bhon", (2, 2, 3, 2), (2, 2, 3), 0, 0),
        ("in,i->n", (3, 2), (3,), 1, 0),
    ]
    for equation, x, weight, example, out_example in right:
        yield Case(f"matmul {equation}", lambda x, w, b: x @ w, contraction_terms(equation), x, weight, example=example,
                   out_example=out_example, **NONE)  # fmt: skip
    for equation, x, weight, example, out_example in left:
        yield Case(f"matmul {equation}", lambda x, w, b: w @ x, contraction_terms(equation), x, weight, example=example,
                   out_example=out_example, **NONE)  # fmt: skip
    yield Case("bmm", torch_bmm, contraction_terms("hni,hio->hno"), (2, 3, 3), (2, 3, 2), example=1, **NONE)
    yield Case("x.bmm keyword", lambda x, w, b: x.bmm(mat2=w), contraction_terms("hni,hio->hno"), (2, 3, 3), (2, 3, 2),
               example=1, **NONE)  # fmt: skip
    shared: dict[str, Any] = {"example": 1, "scales": (0.5, -3.0), "biases": WITH_BIAS}
    yield Case("baddbmm", lambda x, w, b: torch.baddbmm(b, x, w, beta=0.5, alpha=-3), contraction_terms("hni,hio->hno"),
               (2, 3, 3), (2, 3, 2), (2, 3, 2), **shared)  # fmt: skip
    gains: dict[str, Callable[..., Tensor]] = {
        "x * gain": lambda x, w, b: x * w,
        "gain * x": lambda x, w, b: w * x,
        "torch.mul": lambda x, w, b: torch.mul(x, other=w),
    }
    for name, call in gains.items():
        yield Case(name, call, contraction_terms("bd,d->bd"), (3, 2), (2,), **NONE)
    yield Case("x * gain of channels", lambda x, w, b: x * w[:, None], contraction_terms("bcd,c->bcd"), (2, 2, 3), (2,),
               **NONE)  # fmt: skip


def _biases() -> Iterator[Case]:
    """A bias that a plus sign adds to the rows of a product."""
    forms: dict[str, Callable[..., Tensor]] = {
        "bias +": lambda x, w, b: x @ w + b,
        "bias + reflected": lambda x, w, b: b + x @ w,
        "bias torch.add": lambda x, w, b: torch.add(x @ w, other=b),
    }
    for name, call in forms.items():
        yield Case(name, call, contraction_terms("bi,io->bo"), (3, 3), (3, 2), (2,), biases=("only random",))


def torch_bmm(x: Any, w: Any, b: Any) -> Tensor:
    return torch.bmm(x, w)


def _bilinears() -> Iterator[Case]:
    def terms(x: np.ndarray) -> Terms:
        for row in product(*map(range, x.shape[:-1])):
            for i, j, k in product(range(2), range(3), range(2)):
                yield (*row, k), float(x[*row, i] * x[*row, 2 + j]), (k, i, j)

    for batch in ((), (3,), (2, 2)):
        yield Case(f"bilinear {batch}", lambda x, w, b: F.bilinear(x[..., :2], x[..., 2:], w, b), terms, (*batch, 5),
                   (2, 2, 3), (2,), example=0 if batch else None)  # fmt: skip


def _transposed_terms(spatial: int, stride: Index, padding: int, output_padding: int, groups: int,
                      dilation: int) -> Callable[[np.ndarray], Terms]:  # fmt: skip
    kernel, outs_per_group = 2, 2 // groups

    def terms(x: np.ndarray) -> Terms:
        if x.ndim == spatial + 1:
            yield from ((out[1:], coefficient, weight) for out, coefficient, weight in terms(x[None]))
            return
        sizes = [(size - 1) * s - 2 * padding + dilation * (kernel - 1) + output_padding + 1
                 for size, s in zip(x.shape[2:], stride, strict=True)]  # fmt: skip
        per_group = x.shape[1] // groups
        for n, c, o in product(range(len(x)), range(x.shape[1]), range(outs_per_group)):
            for position, tap in product(product(*map(range, x.shape[2:])), product(range(kernel), repeat=spatial)):
                at = [p * s + t * dilation - padding for p, s, t in zip(position, stride, tap, strict=True)]
                if all(0 <= i < size for i, size in zip(at, sizes, strict=True)):
                    channel = c // per_group * outs_per_group + o
                    yield (n, channel, *at), float(x[n, c, *position]), (c, o, *tap)

    return terms


def _transposed(spatial: int, name: str, form: str = "positional", batched: bool = True, stride: Any = 1,
                padding: int = 0, output_padding: int = 0, groups: int = 1, dilation: int = 1) -> Case:  # fmt: skip
    operation: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]
    layer = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[spatial]
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "groups": groups,
               "dilation": dilation}  # fmt: skip

    def as_module(bias: bool) -> vd.BayesianModule:
        return vd.BayesianModule(layer(2, 2, 2, bias=bias, **options).double(), dist.Normal(0.0, 1.0), where="*")

    modules = [as_module(bias) for bias in (False, True)] if form == "module" else []

    def call(x: Any, weight: Any, bias: Any) -> Tensor:
        if form == "module":
            return pyro.condition(modules[bias is not None], data={"net.weight": weight, "net.bias": bias})(x)
        if form == "keyword":
            return operation(input=x, weight=weight, bias=bias, **options)
        return operation(x, weight, bias, *options.values())

    x = (2, 2, *(2, 2, 1)[:spatial]) if spatial > 1 else (2, 2, 3)
    steps = stride if isinstance(stride, tuple) else (stride,) * spatial
    terms = _transposed_terms(spatial, steps, padding, output_padding, groups, dilation)
    return Case(
        f"conv_transpose{spatial}d {name}", call, terms, x if batched else x[1:], (2, 2 // groups, *(2,) * spatial),
        (2,), bias_axis=-spatial - 1, example=0 if batched else None)  # fmt: skip


def _transposed_convs() -> Iterator[Case]:
    for d in (1, 2, 3):
        yield _transposed(d, "plain")
        yield _transposed(d, "stride and padding", stride=2, padding=1, output_padding=1)
        yield _transposed(d, "stride per axis", form="keyword", stride=(2, 1, 1)[:d])
        yield _transposed(d, "groups and dilation", groups=2, dilation=2)
        yield _transposed(d, "unbatched", batched=False)
        yield _transposed(d, "module", form="module", stride=2, padding=1, output_padding=1)


def _embeddings() -> Iterator[Case]:
    def terms(x: np.ndarray) -> Terms:
        for token in product(*map(range, x.shape)):
            for d in range(2):
                yield (*token, d), 1.0, (int(x[token]), d)

    shape: dict[str, Any] = {"weight": (4, 2), "rows": 4, **NONE}
    module = vd.BayesianModule(nn.Embedding(4, 2).double(), dist.Normal(0.0, 1.0), where="*")
    calls: dict[str, Callable[..., Tensor]] = {
        "embedding": lambda x, w, b: F.embedding(x, w),
        "embedding keyword": lambda x, w, b: F.embedding(input=x, weight=w, padding_idx=-1, scale_grad_by_freq=True),
        "embedding module": lambda x, w, b: pyro.condition(module, data={"net.weight": w})(x),
        "embedding sparse": lambda x, w, b: F.embedding(x, w, sparse=True),
    }
    for name, call in calls.items():
        yield Case(name, call, terms, (2, 3), **shape)
    for x in ((), (3,)):
        yield Case(f"embedding {x}", calls["embedding"], terms, x, example=0 if x else None, **shape)


def _bag_terms(mode: str, offsets: list[int] | None, given: np.ndarray | None, padding: int | None):
    def terms(x: np.ndarray) -> Terms:
        if offsets is None:
            bags = [[(int(row), (b, i)) for i, row in enumerate(line)] for b, line in enumerate(x)]
        else:
            bounds = [*offsets, len(x)]
            bags = [[(int(x[i]), (i,)) for i in range(*bounds[b : b + 2])] for b in range(len(offsets))]
        for b, bag in enumerate(bags):
            taken = [(row, place) for row, place in bag if row != padding]
            for row, place in taken:
                coefficient = 1 / len(taken) if mode == "mean" else 1.0 if given is None else float(given[place])
                for d in range(2):
                    yield (b, d), coefficient, (row, d)

    return summed_terms(terms)


def _bags() -> Iterator[Case]:
    make = torch.Generator().manual_seed(5)
    given = torch.randn(3, 4, generator=make, dtype=torch.float64)
    shape: dict[str, Any] = {"weight": (3, 2), "rows": 3, **NONE}
    module = vd.BayesianModule(nn.EmbeddingBag(3, 2, mode="sum").double(), dist.Normal(0.0, 1.0), where="*")
    for mode in ("sum", "mean"):
        for name, offsets, options in (
            ("", None, {}),
            (" padding", None, {"padding_idx": 1}),
            (" offsets", [0, 3, 4], {}),
            (" empty bags", [0, 0, 3, 9], {"padding_idx": -3}),
            (" last offset", [0, 3, 4], {"include_last_offset": True, "sparse": True}),
        ):
            starts = None if offsets is None else torch.tensor([*offsets, 9] if "last" in name else offsets)
            call = lambda x, w, b, m=mode, s=starts, o=options: F.embedding_bag(x, w, s, mode=m, **o)  # noqa: E731
            padding = options["padding_idx"] % 3 if "padding_idx" in options else None
            yield Case(f"embedding_bag {mode}{name}", call, _bag_terms(mode, offsets, None, padding),
                       (3, 4) if offsets is None else (9,), example=0 if offsets is None else None,
                       **shape)  # fmt: skip
    yield Case("embedding_bag weighted", lambda x, w, b: F.embedding_bag(x, w, mode="sum", per_sample_weights=given),
               _bag_terms("sum", None, given.numpy(), None), (3, 4), example=None, **shape)  # fmt: skip
    flat = given.flatten()[:9]
    yield Case("embedding_bag weighted offsets",
               lambda x, w, b: F.embedding_bag(x, w, torch.tensor([0, 4]), mode="sum", per_sample_weights=flat),
               _bag_terms("sum", [0, 4], flat.numpy(), None), (9,), example=None, **shape)  # fmt: skip
    yield Case("embedding_bag module", lambda x, w, b: pyro.condition(module, data={"net.weight": w})(x),
               _bag_terms("sum", None, None, None), (3, 4), **shape)  # fmt: skip


_MAKERS = (_contractions, _batched_products, _biases, _bilinears, _transposed_convs, _embeddings, _bags)
CASES = {**LAYER_CASES, **{case.name: case for make in _MAKERS for case in make()}}
