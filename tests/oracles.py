"""Slow, independent answers: explicit loops, quadrature, and the odds of a statistical test."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

# Chance that one statistical assertion of the suite fails though the code is right.
FAILURE_RATE = 1e-6


def standard_errors(comparisons: int = 1) -> float:
    """How many standard errors a mean may be off in ``comparisons`` two-sided tests, at FAILURE_RATE in all."""
    return NormalDist().inv_cdf(1 - FAILURE_RATE / (2 * comparisons))


def assert_mean_close(draws: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """The mean over the first axis is ``expected``, within its own standard error (Bonferroni over elements)."""
    mean = draws.mean(0)
    bound = factor * standard_errors(mean.numel()) * draws.std(0) / math.sqrt(len(draws)) + 1e-12
    assert ((mean - expected).abs() <= bound).all(), (mean - expected).abs().max()


def assert_variance_close(draws: Tensor, expected: Tensor) -> None:
    """The variance over the first axis is ``expected``, within the standard error of a sample variance."""
    squares = (draws - draws.mean(0)).square() * (len(draws) / (len(draws) - 1))
    assert_mean_close(squares, expected)
