"""Labels of every integer dtype of files, and predictions of no examples."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from pyro_vd import metrics

PROBS = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.25, 0.75]])
SIGNED = ["int8", "int16", "int32", "int64", "uint8", "bool", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", [*SIGNED, "uint16", "uint32", "uint64"])
def test_labels_are_read_as_numbers_of_classes(dtype):
    expected = -(np.log(0.9) + np.log(0.4) + np.log(0.75)) / 3
    for labels in (np.array([0, 1, 1], dtype), torch.tensor([0, 1, 1]).to(getattr(torch, dtype))):
        assert metrics.nll(PROBS, labels) == pytest.approx(expected)
        assert metrics.nll(vd.Predictive(dist.Categorical(probs=PROBS[None]), "y"), labels) == pytest.approx(expected)
        assert metrics.calibration_error(PROBS, labels) == pytest.approx((0.1 + 0.6 + 0.25) / 3, abs=1e-6)
    if dtype != "bool":
        with pytest.raises(ValueError, match="expected labels from 0 to 1, got 0 to 2"):
            metrics.nll(PROBS, np.array([0, 1, 2], dtype))


@pytest.mark.parametrize(
    "metric",
    [
        lambda one: metrics.nll(one, torch.zeros(0)),
        lambda one: metrics.pit(one, torch.zeros(0)),
        lambda one: metrics.interval_coverage(one, torch.zeros(0)),
        metrics.interval_width,
    ],
    ids=["nll", "pit", "interval_coverage", "interval_width"],
)
def test_a_mean_over_no_examples_is_refused(metric):
    with pytest.raises(ValueError, match="at least one"):
        metric(vd.Predictive(dist.Normal(torch.zeros(3, 0), 1.0), "y"))
