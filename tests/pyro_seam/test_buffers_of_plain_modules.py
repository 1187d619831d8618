"""Buffers of modules that a model calls beside its BayesianModule: they change in steps that succeed. Exact."""

from __future__ import annotations

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X, Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 8)


class Growing(nn.Module):
    """A buffer that is put anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("history", torch.zeros(0))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.history = torch.cat([self.history, x.detach().mean().reshape(1)])
        return x


def features():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Growing())


class Whole(PyroModule):
    def __init__(self):
        super().__init__()
        self.features = PyroModule[nn.Sequential](*features())
        self.head = vd.BayesianModule(nn.Linear(4, 2), dist.Normal(0.0, 1.0))

    def forward(self, x, y=None):
        logits = self.head(self.features(x))
        with vd.data_plate(16, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


class Holder:
    def __init__(self):
        self.whole = Whole()

    def model(self, x, y=None):
        return self.whole(x, y)


def of_closure():
    plain, head = features(), vd.BayesianModule(nn.Linear(4, 2), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        pyro.module("features", plain)
        logits = head(plain(x))
        with vd.data_plate(16, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model, plain


def of_module():
    model = Whole()
    return model, model.features


def of_method():
    holder = Holder()
    return holder.model, holder.whole.features


PROGRAMS = {"closure": of_closure, "PyroModule": of_module, "method": of_method}


def failing(call):
    def run(*program):
        with pytest.raises(ValueError):
            call(*program)

    return run


NO_STEPS = {
    "a failed step": failing(lambda model, guide, svi: svi.step(X, torch.full((16,), 7))),
    "a failed call of the loss module": failing(
        lambda model, guide, svi: vd.TraceVD_ELBO()(model, guide)(X, torch.full((16,), 7))
    ),
    "evaluate_loss": lambda model, guide, svi: svi.evaluate_loss(X, Y),
    "posterior_predictive": lambda model, guide, svi: vd.posterior_predictive(model, guide, 9 * X, num_samples=2),
    "predictive_distribution": lambda model, guide, svi: [
        vd.predictive_distribution(model, guide, 9 * X, num_samples=2, mode=mode)
        for mode in ("weights", "local", "mean", "moments")
    ],
    "lrt_report": lambda model, guide, svi: vd.lrt_report(model, guide, X, Y),
    "gradient_variance": lambda model, guide, svi: vd.gradient_variance(
        model, guide, vd.TraceVD_ELBO(), X, Y, num_draws=2
    ),
}


@pytest.mark.parametrize("what", NO_STEPS)
@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_is_no_step_that_succeeds_changes_no_buffer_of_a_plain_module(kind, what):
    model, plain = PROGRAMS[kind]()
    guide = AutoMeanField(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO())
    svi.step(X, Y)
    before, own = {name: b.clone() for name, b in plain.named_buffers()}, dict(plain.named_buffers())
    NO_STEPS[what](model, guide, svi)
    assert all(torch.equal(buffer, before[name]) for name, buffer in plain.named_buffers())
    assert all(buffer is own[name] for name, buffer in plain.named_buffers())
    svi.step(X, Y)
    assert int(plain[1].num_batches_tracked) == 2 and len(plain[2].history) == len(before["2.history"]) + 1


@pytest.mark.parametrize("what", NO_STEPS)
def test_a_plain_module_that_took_the_place_of_another_is_kept_too(what):
    model, plain = of_module()
    guide = AutoMeanField(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO())
    svi.step(X, Y)
    vd.predictive_distribution(model, guide, X, num_samples=2)
    model.features = plain = PyroModule[nn.Sequential](*features())
    svi.step(X, Y)
    before = {name: b.clone() for name, b in plain.named_buffers()}
    assert int(plain[1].num_batches_tracked) == 1
    NO_STEPS[what](model, guide, svi)
    assert all(torch.equal(buffer, before[name]) for name, buffer in plain.named_buffers())


def test_nothing_is_held_after_the_model_is_gone():
    model, plain = of_module()
    vd.TraceVD_ELBO().loss(model, AutoMeanField(model), X, Y)
    gone = weakref.ref(model)
    del model, plain
    pyro.clear_param_store()
    gc.collect()
    assert gone() is None
