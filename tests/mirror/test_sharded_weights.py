"""A weight that is split over two devices, with its gradient and the optimizer's state, trains as on one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("jax")

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, sys
sys.path.insert(0, "tests")
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from helpers.mirror_nets import KEY, images, perceptron, program

assert jax.device_count() == 2
_, _, _, svi = program(perceptron("linen", (64, 16, 10)))
x, y = images(8)
rows = NamedSharding(Mesh(jax.devices(), ("rows",)), P("rows"))
def split(leaf):  # the means, log variances and moments of the first weight: 64 inputs, 16 outputs
    return jax.device_put(leaf, rows) if jnp.shape(leaf) == (64, 16) else leaf
update = jax.jit(svi.update)
def train(state):
    losses = []
    for _ in range(3):
        state, loss = update(state, x, y)
        losses.append(float(loss))
    return losses, state
alone, whole = train(svi.init(KEY, x, y))
sharded, parts = train(jax.tree.map(split, svi.init(KEY, x, y)))
held = [leaf for leaf in jax.tree.leaves(parts) if jnp.shape(leaf) == (64, 16)]
assert len(held) == 6, len(held)  # two parameters, and two moments of each
for leaf in held:
    assert {shard.data.shape for shard in leaf.addressable_shards} == {(32, 16)}, leaf.sharding
np.testing.assert_allclose(sharded, alone, rtol=1e-5)
for one, two in zip(jax.tree.leaves(svi.get_params(whole)), jax.tree.leaves(svi.get_params(parts)), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
print("same", len(set(alone)))
"""


@pytest.mark.slow
def test_a_weight_split_over_two_devices_trains_to_the_same_loss():
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "same 3\n"), done.stderr[-2000:]
