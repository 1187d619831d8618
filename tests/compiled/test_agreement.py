"""The comparison of a compiled program with the eager one, and which differences are only rounding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pyro_vd.compiled.agreement import MEANS, ROUNDING, agree, moved_alike, only_rounding, same_noise
from pyro_vd.compiled.comparison import Trial


def test_agree_is_relative_to_the_norm_in_the_precision_of_the_value():
    expected = torch.tensor([3.0, 4.0])
    assert agree(expected + 0.0049, expected, 1.4e-3) and not agree(expected + 0.0051, expected, 1.4e-3)
    assert agree(expected.half() * 1.2, expected.half()) and not agree(expected * 1.2, expected)
    assert agree(torch.zeros(2), torch.zeros(2))
    assert not agree(torch.tensor([3.0, torch.nan]), expected)


def test_only_rounding_is_told_by_element_and_by_parameter():
    bias_of_attention = torch.tensor([1.0, -0.5, 0.9 * ROUNDING, -1.1 * ROUNDING, 0.0])
    masks = only_rounding([bias_of_attention, torch.full((3,), 0.3 * ROUNDING), torch.full((2,), ROUNDING), None])
    assert masks[0].tolist() == [False, False, True, False, True]
    assert masks[1].all() and not masks[2].any() and masks[3].all()
    assert only_rounding([]) == []
    assert [mask.tolist() for mask in only_rounding([torch.zeros(2)])] == [True]


def test_moves_are_compared_and_not_values():
    before, expected = torch.full((4,), 1000.0), torch.full((4,), 1000.0)
    expected[:2] += 1.0
    wrong = before.clone()
    wrong[:2] += torch.tensor([1.0, 0.5])
    assert agree(wrong, expected) and not moved_alike(before, wrong, expected)
    assert moved_alike(before, expected.clone(), expected)
    assert moved_alike(before, wrong, expected, torch.tensor([False, True, False, False]))
    assert not moved_alike(before, wrong, expected, torch.tensor([True, False, False, False]))
    assert moved_alike(before, wrong, expected, torch.tensor(True))
    assert moved_alike(torch.tensor(1), torch.tensor(2), torch.tensor(5))  # the count of failures, seed offsets


def test_same_noise():
    torch.manual_seed(0)
    with same_noise([torch.ones(1)]):
        first = torch.randn(3)
    torch.testing.assert_close(torch.randn(3), first, rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_never_agrees(value):
    before, moved = torch.zeros(3), torch.tensor([1.0, value, 1.0])
    assert not moved_alike(before, moved, torch.ones(3)) and not moved_alike(before, torch.ones(3), moved)


def test_the_mean_of_gradients_may_move_by_what_a_gradient_is_known_to():
    mean, gradient = torch.full((3,), 3e-3), torch.full((3,), 3.02e-3)
    expected, rounded = mean.lerp(gradient, 0.1), mean.lerp(gradient + 1e-6, 0.1)
    assert not moved_alike(mean, rounded, expected) and moved_alike(mean, rounded, expected, kept=MEANS)
    assert not moved_alike(mean, mean.lerp(2 * gradient, 0.1), expected, kept=MEANS)


def test_a_move_in_the_last_digits_of_a_parameter_is_compared_up_to_them():
    before = torch.full((3,), 1000.0)
    expected = before + 3e-4  # five steps of 6.1e-5, which is a float's distance to the next one there
    assert moved_alike(before, expected + 1e-4, expected) and not moved_alike(before, before + 2e-3, expected)


@pytest.mark.parametrize("wrong", ["none", "mean", "count"])
def test_the_means_of_an_optimizer_have_a_margin_and_its_counts_have_none(wrong):
    weight, mean, count = torch.ones(3), torch.full((3,), 3.0), torch.tensor(5000.0)
    optimizer = SimpleNamespace(owners=lambda _: [[weight, mean]], state=lambda: [mean, count], counts=lambda: [count])
    before = [tensor.clone() for tensor in (weight, mean, count)]
    after = [weight + 0.1, mean + (2e-5 if wrong != "mean" else 1e-2), count + (1 if wrong != "count" else 2)]
    trial = Trial(SimpleNamespace(tensors=[weight, mean, count]), [torch.tensor(1.0)], before, after)
    for tensor, move in ((weight, 0.1), (mean, 1e-5), (count, 1.0)):
        tensor += move
    assert trial.agrees(torch.tensor(1.0), [torch.ones(3)], [weight], optimizer) == (wrong == "none")
