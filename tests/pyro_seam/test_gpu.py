"""On a CUDA device: the same numbers as on the CPU, and no host synchronisation in the loss."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

pytestmark = pytest.mark.gpu


def build(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).to(device)
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(50, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    x, y = torch.rand(10, 1, 8, 8).to(device), torch.randint(3, (10,)).to(device)
    guide = AutoSparseVD(model)
    guide(x, y)
    return model, guide, x, y


def test_loss_without_noise_and_kl_are_those_of_the_cpu():
    values = {}
    for device in ("cpu", "cuda"):
        pyro.clear_param_store()
        model, guide, x, y = build(device)
        terms = vd.TraceVD_ELBO().terms(model, vd.posterior_mean(guide), x, y)
        values[device] = (terms.data.item(), terms.kl_total.item())
    assert values["cuda"] == pytest.approx(values["cpu"], rel=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("estimator", ["local", "shared", "per_example", "flipout"])
def test_loss_and_gradients_do_not_wait_for_the_device(estimator):
    pyro.enable_validation(False)
    model, guide, x, y = build("cuda")
    elbo = vd.TraceVD_ELBO(estimator)
    elbo.differentiable_loss(model, guide, x, y).backward()  # the first call may load kernels
    try:
        torch.cuda.set_sync_debug_mode("error")
        elbo.differentiable_loss(model, guide, x, y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(parameter.grad).all() for parameter in guide.parameters())


def test_training_predicting_and_pruning():
    model, guide, x, y = build("cuda")
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), vd.TraceVD_ELBO(kl_weight=0.0))
    losses = [svi.step(x, y) for _ in range(50)]
    assert losses[-1] < losses[0]
    assert vd.posterior_predictive(model, guide, x, num_samples=3)["y"].is_cuda
