"""Checkpoints of what NumPy makes: learning rates of a grid, the best loss so far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vd.training import load_checkpoint, save_checkpoint

pytest.importorskip("safetensors")


def test_numbers_of_numpy_are_saved_and_arrays_refused(tmp_path):
    net = nn.Linear(2, 1)
    adam = torch.optim.Adam(net.parameters(), lr=np.logspace(-3, -1, 3)[1])
    halved = torch.optim.lr_scheduler.StepLR(adam, 1, gamma=np.float64(0.5))
    adam.step()
    halved.step()
    given = {"modules": {"net": net}, "optimizers": {"adam": adam}, "schedulers": {"halved": halved}}
    extra = {"best": np.float32(0.1), "epoch": np.int64(3), "done": np.bool_(True), "worst": np.float64("inf")}
    save_checkpoint(tmp_path / "run", **given, extra=extra)
    adam.param_groups[0]["lr"] = 1.0
    found = load_checkpoint(tmp_path / "run", **given).extra
    assert found == {"best": float(np.float32(0.1)), "epoch": 3, "done": True, "worst": float("inf")}
    assert adam.param_groups[0]["lr"] == np.logspace(-3, -1, 3)[1] / 2 and halved.gamma == 0.5
    with pytest.raises(TypeError, match="extra.losses: expected .*got ndarray"):
        save_checkpoint(tmp_path / "run", **given, extra={"losses": np.zeros(2)})
