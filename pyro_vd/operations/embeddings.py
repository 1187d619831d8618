"""Rules of embeddings: the input chooses rows of the weight, which enter with coefficients of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vd._torch import applied
from pyro_vd.estimators import LinearOp, is_random
from pyro_vd.operations.table import enter


@enter(
    F.embedding, weight=("weight",), kind="approximate", drops="covariance between tokens that share a row of the table"
)
def embedding(
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> LinearOp:
    """Every token is a row with noise of its own: the same word twice comes out different, its covariance is dropped.

    The row of ``padding_idx`` has noise as in weight space, and no gradient from the data, where no BayesianModule
    keeps it fixed: in a model that samples the table by itself, as under Pyro alone. With ``sparse`` the gradient
    is dense all the same, as that of the KL is.
    """
    _refuse_max_norm("embedding", weight, max_norm)
    look_up: Any = partial(F.embedding, padding_idx=padding_idx, scale_grad_by_freq=scale_grad_by_freq)

    def apply(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return look_up(x, w)

    def apply_variance(x: Tensor, variance: Tensor, bias: Tensor | None) -> Tensor:
        return look_up(x, variance)

    example = 0 if input.dim() > 0 else None
    return LinearOp(apply, input, weight, None, 0, 1, None, -1, example, apply_variance=apply_variance)


@enter(F.embedding_bag, weight=("weight",))
def embedding_bag(
    input: Tensor,
    weight: Any,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> LinearOp | None:
    """The sum or mean of the rows of a bag: exact, a row that comes twice in a bag with twice the deviation.

    ``variance = sum_l a_l * (sum of a_l' with the row of l, in the bag) * variance[row of l]``. Bags are independent,
    as rows of a batch are. Not covered: ``mode="max"``, which is not linear; "per_example" and "flipout" of bags that
    are cut by offsets or weighted. With ``sparse`` the gradient is dense all the same, as that of the KL is.
    """
    _refuse_max_norm("embedding_bag", weight, max_norm)
    if mode not in ("sum", "mean"):
        return None
    cut_by_example = input.dim() == 2 and per_sample_weights is None
    bag: Any = partial(
        F.embedding_bag, scale_grad_by_freq=scale_grad_by_freq, include_last_offset=include_last_offset,
        padding_idx=None if padding_idx is None else padding_idx % weight.shape[0],
    )  # fmt: skip

    def apply(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        if cut_by_example and x.shape[0] == 1:  # one bag: vmap knows no other form
            taken = _coefficients(x, None, mode, None, padding_idx, w)
            return (F.embedding(x, w) * taken[..., None]).sum(1)
        return bag(x, w, offsets, mode=mode, per_sample_weights=per_sample_weights)

    def apply_variance(x: Tensor, variance: Tensor, bias: Tensor | None) -> Tensor:
        coefficients = _coefficients(x, offsets, mode, per_sample_weights, padding_idx, variance)
        squared = _squared_coefficients(x, offsets, coefficients, variance.shape[0])
        return bag(x, variance, offsets, mode="sum", per_sample_weights=squared)

    example = 0 if cut_by_example else None
    return LinearOp(apply, input, weight, None, 0, 1, None, -1, example, apply_variance=apply_variance)


def _refuse_max_norm(operation: str, weight: Any, max_norm: float | None) -> None:
    if max_norm is not None:
        raise ValueError(
            f"site {weight.site!r}: expected {operation} without max_norm, got max_norm={max_norm}, which rescales the "
            "rows of the weight in place at every look-up, and a distribution has no such rows; write max_norm=None, "
            f"or shared_sites=[{weight.site!r}]"
        )


def _bags(x: Tensor, offsets: Tensor | None) -> Tensor:
    """The number of the bag of every entry of ``x``."""
    if offsets is None:
        return torch.arange(x.shape[0], device=x.device)[:, None].expand_as(x)
    place = torch.arange(x.shape[0], device=x.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, place, right=True) - 1


def _coefficients(
    x: Tensor, offsets: Tensor | None, mode: str, given: Tensor | None, padding_idx: int | None, like: Tensor
) -> Tensor:
    """What every entry of ``x`` is multiplied by in the sum over its bag."""
    if given is not None:
        return given.to(like.dtype)
    counted = torch.ones_like(x, dtype=like.dtype)
    if padding_idx is not None:
        counted = (x != padding_idx % like.shape[0]).to(like.dtype)
    if mode == "sum":
        return counted
    if offsets is None:  # a bag in each row; Inductor cannot compile a sum by index over them
        return counted / counted.sum(1, keepdim=True).clamp_min(1)
    bags = _bags(x, offsets)
    counts = counted.new_zeros(offsets.shape[0]).index_add(0, bags, counted)
    return counted / counts.clamp_min(1)[bags]


def _squared_coefficients(x: Tensor, offsets: Tensor | None, coefficients: Tensor, rows: int) -> Tensor:
    """``a_l * (sum of a_l' over the entries l' of the same bag and row as l)``, with shapes that depend on no value."""
    keys, order = (_bags(x, offsets) * rows + x).flatten().sort()
    first = torch.cat([keys.new_ones(keys[:1].shape), (keys[1:] != keys[:-1]).to(keys.dtype)])
    group = torch.zeros_like(order).scatter(0, order, first.cumsum(0) - 1)
    flat = coefficients.flatten()
    totals = torch.zeros_like(flat).index_add(0, group, flat)
    return coefficients * totals[group].view_as(coefficients)


class _DenseGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.to_dense() if gradient.is_sparse else gradient


def with_dense_gradient(weight: Any) -> Any:
    """The weight, with a dense gradient where it is drawn: few operations that a draw comes from take a sparse one."""
    return weight if is_random(weight) else applied(_DenseGradient, weight)
