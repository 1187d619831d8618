"""compile_loss with a gradient that is 0 but for rounding: that of a bias before BatchNorm."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD


@pytest.mark.slow  # the compiler itself: recorded operations alone round alike
def test_a_bias_before_batch_norm_does_not_keep_a_loss_from_being_compiled():
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y):
        logits = bnn(x)
        with vd.data_plate(100, len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    x, y = torch.randn(12, 3), torch.arange(12) % 2
    loss = vd.compile_loss(vd.TraceVD_ELBO()(model, AutoSparseVD(model)), strict=True)
    for _ in range(2):
        loss(x, y).backward()
    assert net[0].bias.grad.norm() < 1e-5 * net[3].bias.grad.norm()
