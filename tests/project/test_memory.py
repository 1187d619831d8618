"""Bytes of live tensors in a training step of ten million weights: what ``examples/any_network.py --memory`` prints."""

from __future__ import annotations

import sys

import pytest

from helpers.paths import EXAMPLES

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests were taken out of the repository")
if EXAMPLES.exists():
    sys.path.insert(0, str(EXAMPLES))
    import _memory  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_local_step_takes_at_most_2_6_times_the_memory_and_makes_no_tensor_of_rows_times_inputs_times_outputs(device):
    weights = sum(inputs * outputs for inputs, outputs in zip(_memory.SIZES[:-1], _memory.SIZES[1:], strict=True))
    assert 9.9e6 < weights < 10.1e6 and _memory.BATCH == 128
    deterministic, local = (_memory.peak(name, device) for name in ("deterministic", "local"))
    # The count is one of everything: parameters, gradients and the two moments of Adam, at least.
    assert deterministic.bytes > 4 * 4 * weights and local.bytes > 8 * 4 * weights
    assert local.bytes <= 2.6 * deterministic.bytes
    assert local.largest <= 4 * 2048 * 2048  # one weight of the largest layer: rows * inputs * outputs is 128 of them
