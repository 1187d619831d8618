"""The comparison of a compiled program with the eager one, and which differences are only rounding."""

from __future__ import annotations

import pytest
import torch

from pyro_vd.compiled.agreement import ROUNDING, agree, moved_alike, only_rounding, same_noise


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
