"""Every noise family with the moments of its weight, from its definition.

A family is described by loops over pairs of weight elements: the mean, the covariance of the part shared by several
elements, and the variance of the part that is independent over elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyro
import torch
from scipy import integrate
from torch import Tensor

import pyro_vd as vd

DRAWS = 4000
ESTIMATORS: dict[str, Callable] = {"local": vd.lrt, "per_example": vd.per_example, "flipout": vd.flipout}


@dataclass(frozen=True)
class Moments:
    """Of a weight, flattened: mean, covariance of its shared noise, variance of its independent noise."""

    mean: np.ndarray
    shared: np.ndarray
    independent: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        return self.shared + np.diag(self.independent)


def parameters(shape: tuple[int, ...], units: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loc, log_sigma2 of a weight; one value in (0, 1) and one real value for each unit."""
    make = torch.Generator().manual_seed(seed + sum(shape))
    loc, log_sigma2 = (torch.randn(shape, generator=make, dtype=torch.float64) for _ in range(2))
    rate = 0.2 + 0.5 * torch.rand(units, generator=make, dtype=torch.float64)
    return loc, log_sigma2 - 1, rate, torch.randn(units, generator=make, dtype=torch.float64)


def relaxed_moments(rate: float, temperature: float) -> tuple[float, float]:
    """Mean and variance of the concrete s, by quadrature over its uniform."""

    def s(u: float, power: int) -> float:
        x = (math.log(u / (1 - u)) - math.log(rate / (1 - rate))) / temperature
        return (1 / (1 + math.exp(-x)) / (1 - rate)) ** power

    first, second = (integrate.quad(s, 1e-12, 1 - 1e-12, args=(k,), points=[rate], limit=400)[0] for k in (1, 2))
    return first, second - first**2


def unit_moments(theta: np.ndarray, dim: int, s_mean: Any, s_variance: Any, v_variance: np.ndarray | None) -> Moments:
    """Of ``w[a] = s[unit of a] * (theta[a] + sqrt(v_variance[a]) * e[a])``, by loops over pairs of elements."""
    elements = list(np.ndindex(theta.shape))
    mean = np.array([s_mean[a[dim]] * theta[a] for a in elements])
    shared = np.zeros((len(elements), len(elements)))
    for (i, a), (j, b) in product(enumerate(elements), repeat=2):
        if a[dim] == b[dim]:
            shared[i, j] = s_variance[a[dim]] * theta[a] * theta[b]
    if v_variance is None:
        return Moments(mean, shared, np.zeros(len(elements)))
    own = [(s_mean[a[dim]] ** 2 + s_variance[a[dim]]) * v_variance[a] for a in elements]
    return Moments(mean, shared, np.array(own))


def enumerated_moments(theta: np.ndarray, dim: int, rate: np.ndarray) -> Moments:
    """Of binary dropout, from all 2**units masks and their probabilities."""
    mean, second = np.zeros(theta.size), np.zeros((theta.size, theta.size))
    shape = tuple(-1 if axis == dim else 1 for axis in range(theta.ndim))
    for mask in product((0.0, 1.0), repeat=len(rate)):
        probability = math.prod(1 - p if kept else p for kept, p in zip(mask, rate, strict=True))
        weight = (theta * (np.array(mask) / (1 - rate)).reshape(shape)).ravel()
        mean += probability * weight
        second += probability * np.outer(weight, weight)
    return Moments(mean, second - np.outer(mean, mean), np.zeros(theta.size))


def correlated(shape, dim):
    loc, _, rate, _ = parameters(shape, shape[dim])
    alpha = rate / (1 - rate)
    q = vd.CorrelatedDropoutNormal(loc, alpha.log(), unit_dim=dim)
    return q, unit_moments(loc.numpy(), dim, np.ones(shape[dim]), alpha.numpy(), None)


def bernoulli(shape, dim):
    loc, _, rate, _ = parameters(shape, shape[dim])
    return vd.BernoulliDropout(loc, rate, unit_dim=dim), enumerated_moments(loc.numpy(), dim, rate.numpy())


def concrete(shape, dim):
    loc, _, rate, _ = parameters(shape, shape[dim])
    q = vd.ConcreteDropout(loc, torch.logit(rate), temperature=0.3, unit_dim=dim)
    s_moments = [relaxed_moments(float(p), 0.3) for p in rate]
    return q, unit_moments(loc.numpy(), dim, *zip(*s_moments, strict=True), None)


def group(shape, dim):
    loc, log_sigma2, rate, unit_loc = parameters(shape, shape[dim])
    q = vd.GroupNormal(loc, log_sigma2, unit_loc, rate.log(), unit_dim=dim)
    return q, unit_moments(loc.numpy(), dim, unit_loc.numpy(), rate.numpy(), log_sigma2.exp().numpy())


def ard(shape, dim):
    loc, log_sigma2, _, _ = parameters(shape, 1)
    q = vd.DropoutNormal(loc, log_sigma2=log_sigma2, kl="ard").to_event(len(shape))
    return q, unit_moments(loc.numpy(), dim, np.ones(shape[dim]), np.zeros(shape[dim]), log_sigma2.exp().numpy())


FAMILIES: dict[str, Callable] = {
    "correlated": correlated, "bernoulli": bernoulli, "concrete": concrete, "group": group, "ard": ard}  # fmt: skip
UNITS = tuple(FAMILIES)[:-1]


def random_weight(posterior: Any, estimator: str, site: str = "w") -> Tensor:
    """What the model gets at a site with this distribution."""
    return ESTIMATORS[estimator](lambda: pyro.sample(site, posterior))()
