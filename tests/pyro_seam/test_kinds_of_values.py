"""Values of the wrong kind on Pyro: complex checkpoints, truth values for numbers, numbers for names."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd


@pytest.mark.parametrize(
    "value", [True, np.True_, np.array(True), torch.tensor(True), 1j, torch.tensor(1j), np.complex64(1)]
)
def test_a_kl_weight_that_is_no_number_is_refused(value):
    elbo = vd.TraceVD_ELBO()
    for give in (lambda: vd.TraceVD_ELBO(kl_weight=value), lambda: setattr(elbo, "kl_weight", value)):
        with pytest.raises(ValueError, match="^kl_weight: expected a (finite|real) number"):
            give()
    assert elbo.kl_weight == 1.0


def test_a_complex_weight_is_not_random():
    net = torch.nn.Linear(3, 2, dtype=torch.cfloat)
    with pytest.raises(
        TypeError, match="expected random parameters of floating point, got 'weight' of torch.complex64"
    ):
        vd.BayesianModule(net, dist.Normal(0.0, 1.0), where="weight")


def test_imaginary_parts_are_not_lost_from_a_checkpoint():
    bnn = vd.BayesianModule(torch.nn.Linear(3, 2), dist.Normal(0.0, 1.0))
    before = {name: value.clone() for name, value in bnn.state_dict().items()}
    with pytest.raises(TypeError, match=r"'net.bias': expected real numbers, got torch.complex64"):
        bnn.load_state_dict({**before, "net.bias": torch.ones(2) * 1j})
    with pytest.raises(TypeError, match="^load_state_dict: expected the names of tensors for keys, got 0"):
        bnn.load_state_dict({**before, 0: torch.ones(2)})
    assert all(torch.equal(value, before[name]) for name, value in bnn.state_dict().items())


@pytest.mark.parametrize("key", [0, ("net", "weight"), None])
def test_keys_that_are_no_names_are_refused(key):
    q = vd.DropoutNormal(torch.ones(2, 3), 0.0)
    bnn = vd.BayesianModule(torch.nn.Linear(3, 2), dist.Normal(0.0, 1.0))
    for call in (
        lambda: vd.keep_masks({key: q}, sparsity={key: 0.5}),
        lambda: vd.prune(bnn, {"net.weight": q, key: q}),
        lambda: vd.sparsity_report({"net.weight": q, key: q}),
    ):
        with pytest.raises(TypeError, match="^guide: expected the names of sites for keys, got "):
            call()
    with pytest.raises(ValueError, match=r"^sparsity: expected sites or patterns of \['0'\], got"):
        vd.keep_masks({"0": q}, sparsity={key: 0.5})
