"""Slow, independent answers: explicit loops, quadrature, and the odds of a statistical test."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import integrate
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


def quadrature_kl(log_alpha: float) -> float:
    """``-0.5 * log_alpha + E log |1 + sqrt(alpha) * e| + C``, the integral cut at its singularity."""
    root = math.exp(0.5 * log_alpha)
    edges = sorted({-12.0, 12.0, 0.0, *([-1 / root] if root > 1 / 12 else [])})

    def integrand(e: float) -> float:
        return math.log(abs(1 + root * e)) * math.exp(-0.5 * e * e) / math.sqrt(2 * math.pi)

    expected = sum(integrate.quad(integrand, a, b, limit=400, epsabs=1e-12)[0] for a, b in pairwise(edges))
    return -0.5 * log_alpha + expected + 0.5 * (math.log(2) + 0.5772156649015329)


def log_density_of_mixture(of: Callable, value: float, means: Any, variance: float) -> float:
    """log of the mean of N(value | *of(a, b)), location and scale, over two independent Gaussians of these means.

    By a sum over a grid of both.
    """
    grid = np.linspace(-8.0, 8.0, 801)
    weight = np.exp(-0.5 * grid**2)
    a, b = (float(m) + math.sqrt(variance) * grid for m in means)
    loc, scale = (np.broadcast_to(one, (801, 801)) for one in of(a[:, None], b[None, :]))
    each = np.exp(-0.5 * ((value - loc) / scale) ** 2) / scale / math.sqrt(2 * math.pi)
    return math.log((each * weight[:, None] * weight).sum() / weight.sum() ** 2)
