"""The padded LSTM of the examples, whose step is compiled, is the packed one: the same function. Exact."""

from __future__ import annotations

import importlib

import pytest
import torch

from helpers.paths import EXAMPLES

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests were taken out of the repository")


def test_a_padded_sequence_with_the_output_at_its_last_row_is_a_packed_one(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    networks = importlib.import_module("_networks")
    torch.manual_seed(0)
    packed, masked = networks.PackedLSTM(4).double(), networks.MaskedLSTM(4).double()
    masked.load_state_dict(packed.state_dict())
    x = torch.rand(5, 8, 8, dtype=torch.float64)
    for example, rows in zip(x, (1, 3, 8, 5, 0), strict=True):
        example[rows:] = 0
    assert networks.lengths(x).tolist() == [1, 3, 8, 5, 1]
    torch.testing.assert_close(masked(x), packed(x))
    assert not torch.allclose(masked(x), networks.LSTMClassifier.forward(masked, x))
