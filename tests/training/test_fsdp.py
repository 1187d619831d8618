"""FSDP2 around the loss module, on two processes: gradients, steps and shards."""

from __future__ import annotations

import pytest
import torch

from helpers.sharded_runs import averaged, worker


@pytest.mark.slow  # two processes that import PyTorch
def test_two_processes_with_a_half_of_every_parameter_train_as_one(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path / "rendezvous"), str(tmp_path / "rank")), nprocs=2)
    first, other = (torch.load(f"{tmp_path}/rank{rank}") for rank in range(2))
    gradients, parameters = averaged(3)
    total = sum(value.numel() for value in parameters.values())
    assert len(gradients) == 6  # means and log variances of two weights, and two biases
    for kind in ("eager", "compiled"):
        for found in (first[kind], other[kind]):
            names = {name.removeprefix("loss."): name for name in found[0]}  # of a compiled loss
            torch.testing.assert_close(
                {n: found[0][name] for n, name in names.items()}, gradients, rtol=1e-6, atol=1e-6
            )
            torch.testing.assert_close(
                {n: found[1][name] for n, name in names.items()}, parameters, rtol=1e-5, atol=1e-6
            )
            assert found[3] == found[4] < 0.7 * total, "parameters, moments"
        assert first[kind][2] != other[kind][2], "noise and data of its own"
        assert first[kind][3] + other[kind][3] == total
        assert first[kind][5] == other[kind][5] and "net.0.weight" in first[kind][5]
