"""Operations on random weights: both sides, from the same parameters and noise, give the same outputs and gradients."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import quax
import torch
import torch.nn.functional as F
from jax import lax

import pyro_vd as vd
import pyro_vd.numpyro as nvd
from helpers.mirror_numbers import DTYPES, assert_same
from helpers.mirror_parity import Noise
from pyro_vd import operations, posteriors
from pyro_vd.estimators import ESTIMATORS, SAMPLERS
from pyro_vd.numpyro import estimators as theirs
from pyro_vd.numpyro import posteriors as their_posteriors

T = torch.Tensor

# float64 tells a wrong formula; float32 only how it rounds.
BOTH = ["float64", pytest.param("float32", marks=pytest.mark.slow)]


def conv(rank, x, w):
    spatial = "HWD"[:rank]
    numbers = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    return lax.conv_general_dilated(x, w, (2,) * rank, ((1, 1),) * rank, dimension_numbers=numbers)


def conv_transpose(rank, x, w):
    spatial = "HWD"[:rank]
    numbers = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    flipped = jnp.flip(w, tuple(range(2, 2 + rank))).swapaxes(0, 1)
    padding = [(size - 1, size - 1) for size in w.shape[2:]]
    return lax.conv_general_dilated(
        x, flipped, (1,) * rank, padding, lhs_dilation=(2,) * rank, dimension_numbers=numbers
    )


# Self-attention of two heads, its four projections the rows of one weight (outputs, inputs).
ATTENTION = torch.nn.MultiheadAttention(4, 2, bias=False, batch_first=True)


def torch_attention(x, w):
    weights = {"in_proj_weight": w[:12], "out_proj.weight": w[12:]}
    return torch.func.functional_call(ATTENTION, weights, (x, x, x), {"need_weights": False})[0]


def attention(x, w):
    examples, tokens, units = x.shape
    heads = jnp.einsum("bti,oi->bto", x, w[:12]).reshape(examples, tokens, 3, 2, 2)
    query, key, value = (heads[:, :, i] for i in range(3))
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(2)
    mixed = jnp.einsum("bhts,bshd->tbhd", jax.nn.softmax(scores), value)
    # PyTorch projects the rows of all tokens, then of all examples.
    rows = jnp.einsum("ri,oi->ro", mixed.reshape(-1, units), w[12:])
    return rows.reshape(tokens, examples, units).swapaxes(0, 1)


def bilinear(x, w):
    # One sum over both inputs: after a product with the first alone the second would meet its noise.
    return jnp.einsum("bij,kij->bk", x[:, :2, None] * x[:, None, 2:], w)


TOKENS = np.array([[0, 3], [1, 4], [3, 3]])

# The calls of the Pyro side that share a rule, the call of the NumPyro side, and the shapes of x and of the weight.
ROWS = {
    "linear": ([F.linear], F.linear, lambda x, w: jnp.einsum("bi,oi->bo", x, w), (6, 5), (2, 5)),
    "linear 3d": ([], F.linear, lambda x, w: jnp.einsum("bti,oi->bto", x, w), (6, 2, 5), (2, 5)),
    "right": (
        [torch.matmul, T.matmul, T.__matmul__, torch.mm, T.mm, T.__rmatmul__],
        torch.matmul, jnp.matmul, (6, 5), (5, 2),
    ),
    "left": ([], lambda x, w: w @ x, lambda x, w: w @ x, (5, 6), (2, 5)),
    "stacked": ([], torch.matmul, jnp.matmul, (2, 6, 5), (2, 5, 3)),
    "vector": ([torch.mv, T.mv], lambda x, w: torch.mv(w, x), lambda x, w: w @ x, (5,), (2, 5)),
    "addmm": (
        [torch.addmm, T.addmm],
        lambda x, w: torch.addmm(x[:1, :2], x, w), lambda x, w: x[:1, :2] + x @ w, (6, 5), (5, 2),
    ),
    "bias": ([torch.add, T.add, T.__add__, T.__radd__], torch.add, jnp.add, (6, 5), (5,)),
    "conv1d": ([F.conv1d], partial(F.conv1d, stride=2, padding=1), partial(conv, 1), (2, 3, 5), (2, 3, 3)),
    "conv2d": ([F.conv2d], partial(F.conv2d, stride=2, padding=1), partial(conv, 2), (2, 3, 5, 4), (2, 3, 2, 2)),
    "conv3d": ([F.conv3d], partial(F.conv3d, stride=2, padding=1), partial(conv, 3), (2, 3, 3, 4, 3), (2, 3, 2, 2, 2)),
    "conv_transpose1d": (
        [F.conv_transpose1d],
        partial(F.conv_transpose1d, stride=2), partial(conv_transpose, 1), (2, 3, 4), (3, 2, 3),
    ),
    "conv_transpose2d": (
        [F.conv_transpose2d],
        partial(F.conv_transpose2d, stride=2), partial(conv_transpose, 2), (2, 3, 4, 3), (3, 2, 2, 3),
    ),
    "conv_transpose3d": (
        [F.conv_transpose3d],
        partial(F.conv_transpose3d, stride=2), partial(conv_transpose, 3), (2, 3, 2, 3, 2), (3, 2, 2, 2, 2),
    ),
    "einsum": (
        [torch.einsum],
        partial(torch.einsum, "bi,oi->bo"), partial(jnp.einsum, "bi,oi->bo"), (6, 5), (2, 5),
    ),
    "embedding": (
        [F.embedding], lambda x, w: F.embedding(torch.tensor(TOKENS), w), lambda x, w: w[TOKENS], (1,), (5, 3),
    ),
    "bilinear": ([F.bilinear], lambda x, w: F.bilinear(x[:, :2], x[:, 2:], w), bilinear, (6, 5), (3, 2, 3)),
    "attention": ([F.multi_head_attention_forward], torch_attention, attention, (2, 3, 4), (16, 4)),
}  # fmt: skip
# Functions of PyTorch that come down to one of these in JAX, or that have no counterpart there.
OTHER_FORMS = {
    "_grouped_mm",
    "__mul__",
    "__rmul__",
    "baddbmm",
    "bmm",
    "embedding_bag",
    "gru",
    "gru_cell",
    "inner",
    "lstm",
    "lstm_cell",
    "mul",
    "multiply",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
    "tensordot",
}
# Stacked matrices and vectors have no examples; the draws of a flipped kernel lie otherwise than those of the kernel.
NO_EXAMPLES = {"stacked", "vector", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
# The signs of flipout are those of both inputs of a bilinear form there, and of their products here.
OTHER_SIGNS = {"bilinear"}
FAMILIES = {
    "log_alpha": ("DropoutNormal", lambda p: ((p["loc"], p["ratio"]), {})),
    "log_sigma2": ("DropoutNormal", lambda p: ((p["loc"],), {"log_sigma2": p["ratio"]})),
    "correlated": ("CorrelatedDropoutNormal", lambda p: ((p["loc"], p["units"]), {})),
    "correlated outputs": ("CorrelatedDropoutNormal", lambda p: ((p["loc"], p["outs"]), {"unit_dim": 0})),
    "binary": ("BernoulliDropout", lambda p: ((p["loc"], 0.3), {})),
    "concrete": ("ConcreteDropout", lambda p: ((p["loc"], p["units"]), {})),
    "group": ("GroupNormal", lambda p: ((p["loc"], p["ratio"], p["units"], p["units"]), {})),
    "group outputs": ("GroupNormal", lambda p: ((p["loc"], p["ratio"], p["outs"], p["outs"]), {"unit_dim": 0})),
    "low rank": ("LowRankNormal", lambda p: ((p["loc"], p["ratio"], p["factor"]), {})),
}


def parameters(x, weight, dtype):
    rng = np.random.default_rng(5)
    shapes = {"x": x, "loc": weight, "ratio": weight, "factor": (2, *weight)}
    shapes |= {"units": weight[1:2] or (1,), "outs": weight[:1]}
    return {name: rng.standard_normal(shape).astype(dtype) / 2 for name, shape in shapes.items()}


def assert_same_outputs(row, family, estimator, dtype, monkeypatch):
    _, our_call, their_call, x, weight = ROWS[row]
    owner, arguments = FAMILIES[family]
    noise, shared = Noise(monkeypatch), estimator == "shared"

    def torch_side(p):
        noise.again()
        args, kwargs = arguments(p)
        q = getattr(posteriors, owner)(*args, **kwargs)
        with vd.handlers.EstimatorMessenger(estimator, strict=True):
            w = pyro.sample("w", q if q.event_shape else q.to_event(len(weight)))
        assert isinstance(w, vd.RandomWeight) != shared
        return [our_call(p["x"], w)]

    def jax_side(p):
        # The Pyro side draws signs for the x of a bias too, which meets no weight.
        noise.again().drawn["sign"] = int(row == "bias")
        args, kwargs = arguments(p)
        q = getattr(their_posteriors, owner)(*args, **kwargs)
        with numpyro.handlers.seed(rng_seed=0), nvd.handlers.EstimatorMessenger(None, estimator, strict=True):
            w = numpyro.sample("w", q if q.event_shape else q.to_event(len(weight)))
        assert isinstance(w, nvd.RandomWeight) != shared
        return [quax.quaxify(their_call)(p["x"], w)]

    assert_same(parameters(x, weight, dtype), dtype, torch_side, jax_side)
    assert sum(noise.drawn.values()) > 0


CALLS = [
    (row, estimator)
    for row in ROWS
    for estimator in ESTIMATORS
    if (estimator in ("local", "shared") or row not in NO_EXAMPLES)
    and (estimator != "flipout" or row not in OTHER_SIGNS)
]


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("row, estimator", CALLS)
def test_outputs_and_gradients_of_every_operation_are_those_of_the_pyro_side(row, estimator, dtype, monkeypatch):
    assert_same_outputs(row, "log_sigma2", estimator, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(
    "family, estimator", [(f, e) for f, row in FAMILIES.items() for e in getattr(posteriors, row[0]).estimators]
)
def test_outputs_and_gradients_of_every_family_are_those_of_the_pyro_side(family, estimator, dtype, monkeypatch):
    assert_same_outputs("conv2d", family, estimator, dtype, monkeypatch)


@pytest.mark.parametrize("estimator", ["per_example", "flipout"])
def test_a_stack_of_matrices_has_no_examples(estimator):
    _, _, call, x, weight = ROWS["stacked"]
    q = their_posteriors.DropoutNormal(jnp.ones(weight), log_sigma2=jnp.zeros(weight)).to_event(3)
    with numpyro.handlers.seed(rng_seed=0), nvd.handlers.EstimatorMessenger(None, estimator, strict=True):
        w = numpyro.sample("w", q)
    with pytest.raises(ValueError, match="site 'w'.*dot_general"):
        quax.quaxify(call)(jnp.ones(x), w)


def test_every_operation_distribution_and_estimator_of_the_pyro_side_has_a_row():
    rows = {f for row in ROWS.values() for f in row[0]}
    assert rows <= set(operations.TABLE)
    assert {f.__name__ for f in set(operations.TABLE) - rows} == OTHER_FORMS
    assert {owner for owner, _ in FAMILIES.values()} == {
        name for name, c in vars(posteriors).items() if isinstance(c, type) and c is not posteriors.WeightPosterior
    }
    assert theirs.ESTIMATORS == ESTIMATORS and list(theirs.SAMPLERS) == list(SAMPLERS)
    assert set(DTYPES) == {"float64", "float32"}
