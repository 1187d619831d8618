"""A schedule by the share of a run, with a loader that does not say how long it is."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.training import cyclic, linear_warm_up

pytest.importorskip("lightning")
from lightning.pytorch import Trainer  # noqa: E402

from helpers.lightning_runs import QUIET  # noqa: E402
from pyro_vd.training.lightning import VariationalModule  # noqa: E402


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from torch.ones(10, 3)


def run(schedule, **options):
    bnn = vd.BayesianModule(torch.nn.Linear(3, 1), vd.ImproperLogUniform())

    def model(x):
        mean = bnn(x)[:, 0]
        with vd.data_plate(10, len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.zeros(len(x)))

    adam = functools.partial(torch.optim.Adam, lr=0.01)
    module = VariationalModule(model, AutoSparseVD(model), vd.TraceVD_ELBO(), adam, schedule)
    Trainer(**QUIET, **options).fit(module, torch.utils.data.DataLoader(Stream(), batch_size=2))
    return module.elbo.kl_weight


@pytest.mark.parametrize("schedule", [linear_warm_up(0, 1, num_steps=1), cyclic(1)])
@pytest.mark.parametrize("epochs", [1, -1])
def test_the_length_is_asked_for_before_the_first_step(schedule, epochs):
    with pytest.raises(ValueError, match="expected a run of a known number of steps.*write num_steps="):
        run(schedule, max_epochs=epochs)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [(linear_warm_up(0, 0.5, num_steps=1), {"max_steps": 4}), (linear_warm_up(0, 1, num_steps=8), {"max_epochs": 2})],
)
def test_the_number_of_steps_may_be_given(schedule, options):
    assert run(schedule, **{"max_epochs": -1, **options}) == 1.0
