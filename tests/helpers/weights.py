"""Random weights outside any guide, and whether what was drawn from them is standard normal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import pyro_vd as vd
from helpers.oracles import standard_errors
from pyro_vd.estimators import WeightNoise, independent_noise
from pyro_vd.weights import WeightState


def random_weight(loc: Tensor, variance: Tensor, estimator: str = "local", site: str = "w", **state: Any):
    """A random weight with independent elements, outside any guide."""
    return weight_of(independent_noise(loc, variance), variance, estimator, site, **state)


def weight_of(noise: WeightNoise, variance: Tensor, estimator: str = "local", site: str = "w", **state: Any):
    """A random weight of any noise, outside any guide."""
    return vd.RandomWeight(noise, variance, WeightState(site, noise, estimator, **state))


def assert_standard_normal(z: Tensor, independent: bool = True) -> None:
    """Elements of ``z`` (draws first) have mean 0, variance 1, and (if ``independent``) are uncorrelated.

    Standard errors are those of the null hypothesis: 1/sqrt(n) for a mean and for a correlation, sqrt(2/n) for
    a variance; each of the three checks fails by chance with probability FAILURE_RATE.
    """
    z = z.flatten(1)
    n, size = z.shape
    assert (z.mean(0).abs() <= standard_errors(size) / math.sqrt(n)).all(), z.mean(0)
    products = z.T @ z / n
    assert ((products.diagonal() - 1).abs() <= standard_errors(size) * math.sqrt(2 / n)).all(), products.diagonal()
    if independent and size > 1:
        off_diagonal = products - products.diagonal().diag()
        bound = standard_errors(size * (size - 1) // 2) / math.sqrt(n)
        assert off_diagonal.abs().max() <= bound, off_diagonal.abs().max()


def weight(*shape: int, **options) -> vd.RandomWeight:
    loc, scale = torch.randn(2, *shape, dtype=torch.float64)
    return random_weight(loc, scale.square(), **options)


def undrawn(random: vd.RandomWeight) -> bool:
    return random.state.draw is None and not random.state.used
