"""Products of rows with a stack of matrices, as in a mixture of experts: exact, in float32, which its kernel needs."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import pyro_vd.estimators
from helpers.weights import random_weight
from pyro_vd.estimators import local, moments

ENDS = torch.tensor([2, 2, 5], dtype=torch.int32)  # the second matrix gets no row
LAYOUTS = {
    "as it is": lambda values: values,
    "transposed": lambda values: values.mT.contiguous().mT,
    "sliced": lambda values: torch.cat([values, values], 1)[:, ::2] * 0 + values,
    "expanded": lambda values: values[:1, :1, :1].expand(values.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_and_gradients_are_those_of_a_product_for_each_matrix(layout, monkeypatch):
    seen = []
    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", lambda op: seen.append(moments(op)) or local(op))
    torch.manual_seed(0)
    loc, variance = torch.randn(3, 4, 8).requires_grad_(), torch.rand(3, 4, 8).requires_grad_()
    x = torch.randn(5, 8)
    weight = random_weight(LAYOUTS[layout](loc), LAYOUTS[layout](variance))

    output = F.grouped_mm(x, weight.mT, offs=ENDS)

    groups = [(x[:2], 0), (x[2:], 2)]
    means = torch.cat([rows @ LAYOUTS[layout](loc)[g].mT for rows, g in groups])
    variances = torch.cat([rows.square() @ LAYOUTS[layout](variance)[g].mT for rows, g in groups])
    ((mean, var),) = seen
    assert output.shape == (5, 4)
    torch.testing.assert_close((mean, var), (means, variances))
    for ours, theirs, parameter in ((mean, means, loc), (var, variances, variance)):
        (got,) = torch.autograd.grad(ours.square().sum(), parameter, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs.square().sum(), parameter, retain_graph=True)
        torch.testing.assert_close(got, expected)


def test_every_row_has_noise_of_its_own():
    weight = random_weight(torch.zeros(3, 4, 8), torch.ones(3, 4, 8))
    output = F.grouped_mm(torch.ones(5, 8), weight.mT, offs=ENDS)
    assert len(output.unique()) == output.numel()


def test_a_stack_of_inputs_is_drawn_and_said():
    weight = random_weight(torch.zeros(3, 4, 8), torch.ones(3, 4, 8))
    with pytest.warns(UserWarning, match="got grouped_mm; the weight is drawn once"):
        assert F.grouped_mm(torch.ones(3, 5, 8), weight.mT).shape == (3, 5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.grouped_mm(torch.ones(5, 8), random_weight(torch.zeros(3, 4, 8), torch.ones(3, 4, 8)).mT, offs=ENDS)
