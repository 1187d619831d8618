"""The exact moments of the outputs of a layer, from those of its weight: what drawn outputs are held against.

Outputs are linear in the weight (``layer_cases.py`` walks their coefficients).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyro_vd as vd
from helpers.layer_cases import Case
from helpers.noise_families import DRAWS, Moments, random_weight
from helpers.oracles import assert_mean_close


def coefficients(case: Case, x: Tensor, bias: Tensor | None) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """The matrix from flat weight to flat output, and the index of every output element."""
    shape = case.call(x, torch.zeros(case.weight).double(), bias).shape
    matrix = np.zeros((math.prod(shape), math.prod(case.weight)))
    for out, coefficient, weight in case.terms(x.numpy()):
        matrix[np.ravel_multi_index(out, shape), np.ravel_multi_index(weight, case.weight)] += coefficient
    return matrix, list(np.ndindex(shape))


def sharing(case: Case, outs: list[tuple[int, ...]], estimator: str) -> np.ndarray:
    """True for pairs of outputs that share unit noise: of one row, or (conv, per_example) of one example."""
    if estimator == "local" and "conv" not in case.name:
        units = 0 if case.name == "w @ x" else len(outs[0]) - 1
        keys = [tuple(i for axis, i in enumerate(out) if axis != units) for out in outs]
    else:
        keys = [(out[case.example],) for out in outs]
    return np.array([[a == b for b in keys] for a in keys])


def drawn_outputs(case: Case, posterior: Any, estimator: str, x: Tensor, bias: Any, number: int) -> Tensor:
    """``number`` draws of all outputs, flat: the examples repeated, as each has noise of its own."""
    y = case.call(torch.cat([x] * number, case.example), random_weight(posterior, estimator), bias)
    axis = y.dim() + case.example - x.dim()
    return y.unflatten(axis, (number, x.shape[case.example])).movedim(axis, 0).flatten(1)


def assert_output_moments(case: Case, posterior: Any, moments: Moments, estimator: str, kind: str) -> None:
    """Mean and whole covariance of the outputs, of all pairs of output elements, are those of weight space."""
    x, _, _, bias_loc, bias_variance = case.inputs()
    bias: Any = bias_loc
    if kind == "random" and bias_loc is not None:
        bias = random_weight(vd.DropoutNormal(bias_loc, log_sigma2=bias_variance.log()), estimator, "b")
    matrix, outs = coefficients(case, x, bias_loc)
    drawn = drawn_outputs(case, posterior, estimator, x, bias, DRAWS)
    together = sharing(case, outs, estimator)
    own = matrix @ np.diag(moments.independent) @ matrix.T
    # "local" gives every output element independent noise of its own: the diagonal is exact.
    own = np.diag(np.diag(own)) if estimator == "local" else own * together
    covariance = (matrix @ moments.shared @ matrix.T) * together + own
    mean = torch.from_numpy(matrix @ moments.mean)
    if bias_loc is not None:
        origin = case.call(torch.zeros_like(x), torch.zeros(case.weight).double(), bias_loc).flatten()
        mean = mean + origin
        if kind == "random":
            spread = case.call(torch.zeros_like(x), torch.zeros(case.weight).double(), bias_variance).flatten().numpy()
            # Positions of an example share the bias drawn for it; under "local" its noise is per output element.
            axis = case.bias_axis if case.bias_axis is not None else -1
            same_bias = np.array([[a[axis] == b[axis] for b in outs] for a in outs]) & together
            covariance += np.diag(spread) if estimator == "local" else same_bias * spread
    assert_mean_close(drawn, mean)
    deviation = drawn - mean
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], torch.from_numpy(covariance))
