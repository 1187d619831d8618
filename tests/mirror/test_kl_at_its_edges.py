"""The KL where a formula ends: its derivatives at log_alpha = 0 are those from the left, and NaN stays NaN."""

from __future__ import annotations

import math

import jax
import pytest
import torch

import helpers.mirror_compiling  # noqa: F401
import pyro_vd.kl as ours
from pyro_vd import _constants as c
from pyro_vd.common.options import LOG_UNIFORM_METHODS
from pyro_vd.numpyro import kl as theirs

# The first and the second derivative at log_alpha = 0, from the left.
FROM_THE_LEFT = {
    "cubic": (-0.5 - c.CUBIC_C1 - 2 * c.CUBIC_C2 - 3 * c.CUBIC_C3, -c.CUBIC_C1 - 4 * c.CUBIC_C2 - 9 * c.CUBIC_C3),
    "lower_bound": (-0.5, 0.0),
}


@pytest.mark.parametrize("method", FROM_THE_LEFT)
def test_derivatives_at_zero_rest_on_no_convention_of_the_host(method):
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for value in (ours.kl_log_uniform(x, method), ours.kl_additive(torch.ones_like(x), x, method)):
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        second = torch.autograd.grad(first, x)[0].item() if first.requires_grad else 0.0
        assert (first.item(), second) == pytest.approx(FROM_THE_LEFT[method], rel=1e-12)
    first = jax.grad(lambda x: theirs.kl_log_uniform(x, method))
    assert (first(0.0), jax.grad(first)(0.0)) == pytest.approx(FROM_THE_LEFT[method], rel=1e-5)


@pytest.mark.parametrize("method", LOG_UNIFORM_METHODS)
def test_nan_stays_nan(method):
    assert ours.kl_log_uniform(torch.tensor(math.nan), method).isnan()
    assert math.isnan(theirs.kl_log_uniform(math.nan, method))
