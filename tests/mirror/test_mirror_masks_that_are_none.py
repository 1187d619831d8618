"""What is no posterior, no mask and no parameter of the net is refused by name, on the NumPyro side too."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import pyro_vd.numpyro as vd
from pyro_vd.guides import numpyro as guides

NET = eqx.nn.Linear(4, 3, key=jax.random.key(0))
BNN = vd.BayesianModule(NET, vd.ImproperLogUniform())
POSTERIOR = {"net.weight": vd.DropoutNormal(jnp.ones((3, 4)), log_sigma2=-4.0)}
PARAMS = {"net.bias": jnp.zeros(3)}


@pytest.mark.parametrize(
    "function",
    [vd.keep_masks, vd.weight_bits, vd.sparsity_report, lambda guide: vd.prune(BNN, guide, params=PARAMS),
     lambda guide: vd.threshold_curve(BNN, guide, lambda net: 0.0, params=PARAMS)],
    ids=["keep_masks", "weight_bits", "sparsity_report", "prune", "threshold_curve"],
)  # fmt: skip
def test_no_posterior(function):
    with pytest.raises(
        TypeError, match="site 'net.weight': expected the posterior of a weight, got .*; write guide.posteriors"
    ):
        function({"net.weight": jnp.ones((3, 4))})
    with pytest.raises(TypeError, match=r"expected a guide, got the class AutoSparseVD; write AutoSparseVD\(model\)"):
        function(guides.AutoSparseVD)


@pytest.mark.parametrize("masks", [None, [jnp.ones(2, bool)], {"net.a": jnp.ones(2)}, POSTERIOR, {"net.a": None}])
def test_no_masks(masks):
    with pytest.raises(TypeError, match=r"keep_zeros: .*expected .* got .*; write keep_masks\(guide, params=params\)"):
        vd.keep_zeros(masks)


def test_a_bias_of_another_net_and_no_evaluation():
    with pytest.raises(ValueError, match=r"params: expected a value of shape \(3,\) for 'net.bias', got \(5,\)"):
        vd.prune(BNN, POSTERIOR, params={"net.bias": jnp.zeros(5)})
    with pytest.raises(TypeError, match="threshold_curve: expected evaluate to be a function of a net, got None"):
        vd.threshold_curve(BNN, POSTERIOR, None, params=PARAMS)  # type: ignore[arg-type]
    assert vd.prune(BNN, POSTERIOR, params=PARAMS).weight.shape == (3, 4)
