"""The rule of einsum, and of what is written as one: tensordot and inner."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vd.estimators import LinearOp, is_random
from pyro_vd.operations.table import enter

T = Tensor


@enter(torch.einsum, weight=("operands",), drops="covariance between outputs, of one example, that share the weight")
def einsum(equation: str, *operands: Tensor) -> LinearOp | None:
    """A contraction in which the weight appears once: exact mean and variance of every output element.

    The other operands are contracted first, to one coefficient for each pair of output and weight element: an
    index that is summed over but is not the weight's adds coefficients, not variances. Not covered: the diagonal of a
    weight, a weight without another operand.
    """
    random = [place for place, operand in enumerate(operands) if is_random(operand)]
    if len(random) != 1 or len(operands) < 2:
        return None
    *inputs, outs = _labels(equation, operands)
    weight, own = operands[random[0]], inputs.pop(random[0])
    others = [operand for operand in operands if operand is not weight]
    sizes: dict[str, int] = {}
    for operand, labels in zip(others, inputs, strict=True):
        for label, size in zip(labels, operand.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    if len(set(own)) < len(own):
        return None
    # A weight of size 1 along a longer axis is broadcast: that axis is not its own.
    broadcast = [axis for axis, label in enumerate(own) if weight.shape[axis] == 1 < sizes.get(label, 1)]
    weight = weight.squeeze(tuple(broadcast)) if broadcast else weight
    own = "".join(label for axis, label in enumerate(own) if axis not in broadcast)
    rows = "".join(label for label in outs if label in sizes and label not in own)
    kept = rows + "".join(label for label in own if label in sizes)
    x = others[0] if inputs == [kept] else torch.einsum(f"{','.join(inputs)}->{kept}", *others)

    def apply(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return torch.einsum(f"{kept},{own}->{outs}", x, w)

    units, weight_outs = ([label for label in own if (label in outs) == kind] for kind in (False, True))
    place = _only(units), _only(weight_outs)
    return LinearOp(
        apply, x, weight, None,
        *(None if label is None or None in place else own.index(label) for label in place),
        x_units=kept.index(units[0]) - len(kept) if units and units[0] in kept else None,
        out_units=outs.index(weight_outs[0]) - len(outs) if weight_outs else None,
        example=0 if rows else None,
        out_example=outs.index(rows[0]) if rows else None,
    )  # fmt: skip


@enter(torch.tensordot, weight=("a", "b"), drops="covariance between outputs, of one example, that share the weight")
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> LinearOp | None:
    """Exact mean and variance of every output element; see :func:`einsum`."""
    if isinstance(dims, Tensor):
        return None
    if isinstance(dims, int):
        dims = range(a.dim() - dims, a.dim()), range(dims)
    letters = iter(string.ascii_letters)
    first, second = ([next(letters) for _ in range(tensor.dim())] for tensor in (a, b))
    left, right = ([axes] if isinstance(axes, int) else list(axes) for axes in dims)
    summed = set()
    for axis, other in zip(left, right, strict=True):
        second[other] = first[axis]
        summed.add(first[axis])
    out = [label for label in (*first, *second) if label not in summed]
    return einsum(f"{''.join(first)},{''.join(second)}->{''.join(out)}", a, b)


@enter(torch.inner, T.inner, weight=("input", "other"))
def inner(input: Tensor, other: Tensor) -> LinearOp | None:
    """``input @ other.mT`` over all but the last axes: exact for each row."""
    if input.dim() == 0 or other.dim() == 0:
        return None
    return tensordot(input, other, dims=([-1 % input.dim()], [-1 % other.dim()]))


def _only(labels: Sequence[str]) -> str | None:
    return labels[0] if len(labels) == 1 else None


def _labels(equation: str, operands: Sequence[Tensor]) -> list[str]:
    """The subscripts of every operand and of the output, each ellipsis written out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    batch = [operand.dim() - len(term.replace("...", "")) for operand, term in zip(operands, terms, strict=True)]
    names = "".join(free[: max(0, *batch)])
    inputs = [
        term.replace("...", names[len(names) - count :] if count else "")
        for term, count in zip(terms, batch, strict=True)
    ]
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return [*inputs, right.replace("...", names)]
