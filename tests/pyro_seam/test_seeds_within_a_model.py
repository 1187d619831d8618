"""A seed that a model or net sets repeats every draw: said once, in losses and predictions; a fork is left alone."""

from __future__ import annotations

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X, MESSAGE = torch.ones(4, 3), "expected a model, guide and net that leave the seed"


class Net(nn.Linear):
    def __init__(self, seed):
        super().__init__(3, 2)
        self.seed = seed

    def forward(self, x):
        if self.seed is not None:
            torch.manual_seed(self.seed)
        return super().forward(x)


def forked(x):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return x + 0 * torch.randn(3)


def program(seed, where):
    bnn = vd.BayesianModule(Net(seed if where == "net" else None), dist.Normal(0.0, 1.0))

    def model(x):
        if where == "model":
            pyro.set_rng_seed(seed)
        mean = bnn(forked(x))
        with vd.data_plate(4, len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=None if Holder.predicts else torch.zeros(4, 2))

    guide = AutoMeanField(model)
    guide(X)
    torch.manual_seed(5)
    return model, guide


class Holder:
    predicts = False


def step(estimator, model, guide):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO(estimator))
    for _ in range(4):
        svi.step(X)


def module(estimator, model, guide):
    loss = vd.TraceVD_ELBO(estimator)(model, guide)
    for _ in range(4):
        loss(X)


def compiled(estimator, model, guide):
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    svi = vd.CompiledSVI(model, guide, adam, vd.TraceVD_ELBO(estimator), accumulate=9)
    svi.step(X)  # eager
    svi.step(X)


@pytest.mark.parametrize("where", ["net", "model"])
@pytest.mark.parametrize("estimator", ["local", "shared"])
@pytest.mark.parametrize("run", [step, module, compiled])
def test_a_loss_says_so_once(run, estimator, where):
    model, guide = program(3, where)
    with pytest.warns(UserWarning, match=MESSAGE) as seen:
        run(estimator, model, guide)
    assert sum(MESSAGE in str(one.message) for one in seen) == 1


@pytest.mark.parametrize("run", [step, module])
@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_a_model_that_leaves_the_seed_alone(run, estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(estimator, *program(None, "nowhere"))


@pytest.mark.parametrize("predict", [vd.posterior_predictive, vd.predictive_distribution])
@pytest.mark.parametrize("mode", ["weights", "local"])
def test_a_prediction_says_so(predict, mode, monkeypatch):
    monkeypatch.setattr(Holder, "predicts", True)
    for where in ("net", "nowhere"):
        model, guide = program(3, where)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            predict(model, guide, X, num_samples=3, mode=mode)
        assert any(MESSAGE in str(one.message) for one in seen) is (where == "net")
