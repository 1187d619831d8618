"""Shapes that cannot be meant, of draws, expansions and values: each an error in words, of every distribution."""

from __future__ import annotations

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from helpers.conformance import ONE_WEIGHT, ROWS, SHAPE, WITH_DENSITY, fixed
from pyro_vd.fixed import Fixed
from pyro_vd.posteriors.fixed import PartlyFixed

NO_SHAPES = {
    "float": (2.0, TypeError, "(10,)"),
    "number": (3, TypeError, "write (3,)"),
    "text": ("3", TypeError, "'3'"),
    "None": (None, TypeError, "None"),
    "tensor": (torch.ones(2), TypeError, "shape (2,)"),
    "tensor of sizes": (torch.tensor([2, 3]), TypeError, "(10,)"),
    "numpy": (np.array([2]), TypeError, "(10,)"),
    "dict": ({2: 3}, TypeError, "{2: 3}"),
    "negative": ((-1,), ValueError, "got -1"),
    "torch.Size": (torch.Size((2, -1)), ValueError, "got -1"),
    "of float": ((2, 1.5), ValueError, "got 1.5"),
    "of text": (["2"], ValueError, "got '2'"),
    "of bool": ((True,), ValueError, "got True"),
    "nested": (((2, 3),), ValueError, "got (2, 3)"),
    "nested deeper": ([2, [3]], ValueError, "got [3]"),
}


def partly_fixed():
    return PartlyFixed(fixed("DropoutNormal"), Fixed(torch.tensor([True, False, False]), 0.0))


@pytest.mark.parametrize("kind", NO_SHAPES)
def test_a_sample_shape_that_is_none_is_refused(kind):
    value, error, said = NO_SHAPES[kind]
    for q in (*map(fixed, ROWS), partly_fixed()):
        for draw in (q.sample, q.rsample, q.to_event(0).sample):
            state = torch.get_rng_state()
            with pytest.raises(
                error, match=r"^\w+: expected (every size in )?sample_shape to be .* got .*; write "
            ) as got:
                draw(value)
            assert said in str(got.value) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("row", ROWS)
def test_sample_shapes_that_are_meant(row):
    q = fixed(row)
    for given in ((2, 3), [2, 3], torch.Size((2, 3)), (np.int64(2), 3), (2, torch.tensor(3)), iter((2, 3))):
        assert q.rsample(given).shape == (2, 3, *q.shape())
    assert q.sample((0,)).shape == (0, *q.shape()) and q.sample([]).shape == q.shape()


@pytest.mark.parametrize("kind", NO_SHAPES)
def test_an_expansion_to_no_shape_is_refused(kind):
    value, error, said = NO_SHAPES[kind]
    for q in (*map(fixed, ROWS), vd.ImproperLogUniform(), partly_fixed()):
        with pytest.raises(
            error, match=r"^\w+: expected (every size in )?the batch_shape of expand to be .* got "
        ) as got:
            q.expand(value)
        assert said in str(got.value) or "write" in str(got.value)


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ONE_WEIGHT] + ["ImproperLogUniform", "PartlyFixed"])
@pytest.mark.parametrize("shape", [(7, 5), (), (3,), (3, 2), (2, 2, 1), (0, 3), (2, 3, 1)])
def test_an_expansion_to_a_shape_that_does_not_fit_is_refused(row, shape):
    others = {"ImproperLogUniform": lambda: vd.ImproperLogUniform(SHAPE), "PartlyFixed": partly_fixed}
    q = others[row]() if row in others else fixed(row)
    if row == "TruncatedLogUniform" and shape == (3, 2):
        assert q.expand(shape).batch_shape == shape  # its own
        return
    own = tuple(q.batch_shape)
    with pytest.raises(
        ValueError, match=re.escape(f"expected expand to a shape that {own} broadcasts to, got {shape}")
    ):
        q.expand(shape)
    with pytest.raises(ValueError, match="broadcasts to, got"):
        q.to_event(1).expand((7,))


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("row", [*WITH_DENSITY, "ImproperLogUniform", "PartlyFixed"])
def test_a_value_of_a_shape_that_does_not_fit_is_refused(row, validate):
    others = {
        "ImproperLogUniform": lambda: vd.ImproperLogUniform(SHAPE, validate_args=validate),
        "PartlyFixed": partly_fixed,
    }
    q = others[row]() if row in others else fixed(row, validate_args=validate)
    own = tuple(q.shape())
    for shape in ((7, 5), (6,), tuple(reversed(own)), (2, 2, 4), (0,)):
        with pytest.raises(ValueError, match=re.escape(f"{own} of the distribution")) as got:
            q.log_prob(torch.full(shape, 0.5, dtype=torch.float64))
        assert f"got shape {shape}" in str(got.value)


def test_a_value_of_a_low_rank_weight_is_broadcast_as_any_other():
    q = fixed("LowRankNormal", validate_args=False)
    for shape in ((), (3,), (1, 3), (4, 1, 3), (5, 2, 3)):
        value = torch.rand(shape, dtype=torch.float64)
        whole = value.expand(torch.broadcast_shapes(shape, SHAPE))
        torch.testing.assert_close(q.log_prob(value), q.log_prob(whole))
        assert q.log_prob(value).shape == whole.shape[:-2]


@pytest.mark.parametrize("kind", [kind for kind in NO_SHAPES if kind not in ("number", "tensor of sizes", "numpy")])
def test_a_sample_shape_of_predictions_is_checked(kind):
    value, _, _ = NO_SHAPES[kind]

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(w * x, 1.0))

    def guide(x):
        pyro.sample("w", vd.DropoutNormal(torch.tensor(1.0), log_sigma2=0.0))

    y = vd.predictive_distribution(model, guide, torch.ones(4), num_samples=2)["y"]
    with pytest.raises((TypeError, ValueError), match=r"^site 'y': expected .*sample_shape to be .*write 10 or"):
        y.sample(value)
    assert y.sample(3).shape == y.sample((3,)).shape == (3, 4)
