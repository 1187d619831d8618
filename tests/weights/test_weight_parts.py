"""Second uses of a random weight: an error for the whole and for parts that overlap, none for parts that do not.

All checks are exact, but for the one on independent reuse: it allows the standard errors of
``oracles.standard_errors`` and fails by chance with probability 1e-6.
"""

from __future__ import annotations

import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.oracles import assert_mean_close
from helpers.weights import random_weight, weight


def test_second_use_raises_and_names_site_and_both_ways_out():
    random, x = weight(3, 3), torch.ones(2, 3).double()
    F.linear(x, random)
    message = r"site 'w': expected one use .*second one in matmul.*shared_sites=\['w'\].*reuse=\"independent\""
    with pytest.raises(ValueError, match=message):
        torch.matmul(x, random)


def test_reuse_independent_gives_the_difference_of_two_uses_twice_the_variance():
    x = torch.ones(1, 3).double()
    loc, variance = torch.zeros(2, 3).double(), torch.full((2, 3), 1 / 3).double()

    def two(**options) -> Tensor:
        random = random_weight(loc, variance, **options)
        return F.linear(x, random) - x @ random.T

    difference = torch.stack([two(reuse="independent") for _ in range(2000)])
    assert_mean_close(difference.square(), torch.tensor(2.0).double())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda w: w[:3], lambda w: w[3:]),
        (lambda w: w.chunk(2)[0], lambda w: w.chunk(2)[1]),
        (lambda w: w.T[:, :2], lambda w: w[2:].T.T),
        (lambda w: w[::2], lambda w: w[1::2]),
        (lambda w: w[:, :2], lambda w: w.split(2, dim=1)[1]),
        (lambda w: 2 * w[:3], lambda w: -w[3:]),
        (lambda w: w[:3].flip(0), lambda w: w[3:].clone()),
    ],
)
def test_disjoint_parts_may_be_used_once_each(first, second):
    random = weight(6, 4)
    for part in (first(random), second(random)):
        F.linear(torch.ones(1, part.shape[1]).double(), part)
    with pytest.raises(ValueError, match="second"):
        part = random[2:4]
        F.linear(torch.ones(1, part.shape[1]).double(), part)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda w: w[:3], lambda w: w[2:]),
        (lambda w: w[:3], lambda w: w[2:, 3:]),  # the last element of one is the first of the other
        (lambda w: w[2:, 3:], lambda w: w[:3]),
        (lambda w: w, lambda w: w[5:]),
        (lambda w: w[:, :3], lambda w: w[4:]),
        (lambda w: w[::2], lambda w: w[4:]),
        (lambda w: 2 * w[:3], lambda w: w[:3].clone()),
        (lambda w: w.T, lambda w: w.reshape(-1)[-4:].reshape(1, 4)),
        (lambda w: w[:3].float(), lambda w: w[2:]),
    ],
)
def test_overlapping_parts_may_not(first, second):
    random = weight(6, 4)
    for part, reused in ((first(random), False), (second(random), True)):
        x = torch.ones(1, part.shape[1], dtype=part.dtype)
        if reused:
            with pytest.raises(ValueError, match="second one in linear"):
                F.linear(x, part)
        else:
            F.linear(x, part)


def test_disjoint_chunks_are_told_apart_without_listing_their_elements():
    random, x = weight(3 * 256, 256), torch.ones(1, 256).double()
    tracemalloc.start()
    for part in random.chunk(3):
        x @ part.T
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
