"""The form of 4 bits of ``examples/deploy.py``: layers of any size, each weight off by half a step at most."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from helpers.paths import EXAMPLES

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests were taken out of the repository")
if EXAMPLES.exists():
    sys.path.insert(0, str(EXAMPLES))
    import _deployed

    sys.path.remove(str(EXAMPLES))


@pytest.mark.filterwarnings("ignore")
def test_weights_in_four_bits():
    pytest.importorskip("torchao.prototype.quantization.int4")
    torch.manual_seed(0)
    for inputs, outputs in ((32, 16), (70, 10), (5, 33)):
        layer = nn.Linear(inputs, outputs)
        x = torch.randn(3, inputs)
        torch.testing.assert_close(_deployed.padded(layer)(x), layer(x))
        form = _deployed.int4_form(nn.Sequential(layer))
        with torch.no_grad():
            found = (form.call(torch.eye(inputs)) - layer.bias).T
        groups = nn.functional.pad(layer.weight.detach(), (0, -inputs % 32)).unflatten(1, (-1, 32))
        step = ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(32, 1)[:, :inputs]
        off = (found - layer.weight).abs() / step
        assert off.max() < 0.52, "half a step, and the rounding of the scale"
        assert off.mean() > 0.1
    large = nn.Sequential(nn.Linear(300, 200))
    assert 4 < _deployed.state_file(large) / _deployed.int4_form(large).bytes < 6
