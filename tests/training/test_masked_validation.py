"""The validation loss of VariationalModule where a mask hides examples: the mean is over those that are seen."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

pytest.importorskip("lightning")
from lightning.pytorch import Trainer  # noqa: E402

from helpers.lightning_runs import QUIET  # noqa: E402
from pyro_vd.training.lightning import VariationalModule  # noqa: E402

X = torch.arange(30.0).reshape(10, 3) / 10
Y = torch.arange(10.0)
SEEN = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 1]).bool()  # of a batch of three none is seen


def masked_by(bnn, how):
    def model(x, seen, y=None):
        mean = bnn(x)
        with vd.data_plate(10, len(x)):
            if how == "poutine":
                with pyro.poutine.mask(mask=seen):
                    return pyro.sample("y", dist.Normal(mean[:, 0], 1.0), obs=y)
            if how == "obs_mask":
                return pyro.sample("y", dist.Normal(mean[:, 0], 1.0), obs=y, obs_mask=seen)
            each = dist.Normal(mean, 1.0).mask(seen[:, None] if how == "event" else seen[:, None].expand(len(x), 1))
            return pyro.sample("y", each.to_event(1), obs=None if y is None else y[:, None])

    return model


@pytest.mark.parametrize("batch_size", [3, 4, 10])
@pytest.mark.parametrize("how", ["poutine", "obs_mask", "event"])
def test_the_mean_is_over_the_examples_that_are_seen(how, batch_size):
    bnn = vd.BayesianModule(torch.nn.Linear(3, 1), vd.ImproperLogUniform())
    model = masked_by(bnn, how)
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    module = VariationalModule(model, AutoSparseVD(model), vd.TraceVD_ELBO(), adam, mode="mean")
    loader = DataLoader(TensorDataset(X, SEEN, Y), batch_size=batch_size)
    (found,) = Trainer(**QUIET).test(module, loader, verbose=False)
    expected = -dist.Normal(bnn.net(X)[:, 0], 1.0).log_prob(Y)[SEEN].mean()
    assert found["test_nll"] == pytest.approx(expected.item(), rel=1e-5)
