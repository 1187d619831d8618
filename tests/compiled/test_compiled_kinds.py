"""The compiler itself on every kind of step: optimizers, particles, priors that validate; memory that stays flat."""

from __future__ import annotations

import functools
import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pyro_vd as vd
from helpers.svi_runs import Task, run, without_compiler

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1)
OPTIMIZERS = {
    "SGD": functools.partial(torch.optim.SGD, lr=1e-3),
    "SGD nesterov": functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9, nesterov=True),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=1e-3),
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=1e-3),
    "Adadelta": functools.partial(torch.optim.Adadelta, lr=1e-1),
    "AdamW": functools.partial(torch.optim.AdamW, lr=1e-3),
}


def regression():
    torch.manual_seed(0)
    bnn = vd.BayesianModule(nn.Linear(3, 1), vd.ImproperLogUniform())

    def model(x, y):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(60, len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    return model, vd.guides.AutoSparseVD(model, init_log_sigma2=-1.0)


class Tutorial(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](3, 1)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.layer.bias = PyroSample(lambda layer: dist.Laplace(torch.zeros(1), 1.0, validate_args=False).to_event(1))
        self.noise = PyroSample(dist.Gamma(torch.tensor(2.0), 4.0))

    def forward(self, x, y):
        mean = self.layer(x).squeeze(-1)
        sigma = self.noise
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(4.0, mean, sigma), obs=y)


def expect_compiled(model, guide, optim, elbo, steps=5):
    """Every step is compiled as soon as it can be, and has the eager loss for the same noise."""
    svi = vd.CompiledSVI(model, guide, optim, elbo, strict=True)
    for step in range(steps):
        torch.manual_seed(step)
        with torch.no_grad():
            expected = elbo.differentiable_loss(model, guide, X, Y).item() if step else None
        torch.manual_seed(step)
        loss = svi.step(X, Y).item()
        assert step == 0 or loss == pytest.approx(expected, rel=1e-3), step
    assert len(svi._programs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    expect_compiled(*regression(), OPTIMIZERS[name], vd.TraceVD_ELBO())


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_several_particles(estimator):
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    expect_compiled(*regression(), adam, vd.TraceVD_ELBO(estimator, num_particles=3))


@pytest.fixture
def graphs(monkeypatch):
    return without_compiler(monkeypatch)


@pytest.mark.parametrize("vectorised", [False, True])
def test_several_particles_of_a_plain_model(graphs, vectorised):
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(slope * x[:, 0], 1.0), obs=y)

    elbo = vd.TraceVD_ELBO(num_particles=4, vectorize_particles=vectorised, max_plate_nesting=1, analytic_only=False)
    expect_compiled(model, AutoNormal(model), OPTIMIZERS["AdamW"], elbo)


@pytest.mark.filterwarnings("ignore:site 'layer.weight'")  # which AutoNormal draws once a step
def test_distributions_that_were_made_before_and_validate(graphs):
    model = Tutorial()
    assert model._pyro_samples["noise"]._validate_args
    expect_compiled(model, AutoNormal(model), OPTIMIZERS["AdamW"], vd.TraceVD_ELBO(analytic_only=False))
    assert model._pyro_samples["noise"]._validate_args  # the user's own is as it was


@pytest.mark.parametrize("name", ["SGD nesterov", "AdamW"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_parameter_without_a_gradient_stays(graphs, name, accumulate):
    model, guide = regression()
    unused = nn.Linear(2, 2)

    def with_unused(x, y):
        pyro.module("unused", unused)
        return model(x, y)

    before = unused.weight.detach().clone()
    svi = vd.CompiledSVI(with_unused, guide, OPTIMIZERS[name], vd.TraceVD_ELBO(), strict=True, accumulate=accumulate)
    for _ in range(6):
        svi.step(X, Y)
    assert torch.equal(unused.weight, before) and len(svi._programs) == accumulate


def test_frozen_in_the_middle_of_a_training_is_an_error(graphs):
    for freeze in (lambda task: task.bnn.net.bias, lambda task: next(task.guide.parameters())):
        task = Task(lambda: nn.Linear(5, 3))
        svi = vd.CompiledSVI(task.model, task.guide, OPTIMIZERS["AdamW"], vd.TraceVD_ELBO())
        run(svi.step, task.batches, 4)
        parameter = freeze(task).requires_grad_(False)
        before = parameter.clone()
        for _ in range(2):
            with pytest.raises(ValueError, match="got requires_grad=False; make a new CompiledSVI after freezing"):
                svi.step(*task.batches[0])
        assert torch.equal(parameter, before)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.GRU(1, 2, batch_first=True), nn.Linear(2, 1)

    def forward(self, x):
        packed = pack_padded_sequence(x.unsqueeze(-1), [3, 2] * 6, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0].mean(1))


def test_a_packed_sequence_is_named(graphs):
    bnn = vd.BayesianModule(Packed(), dist.Normal(0.0, 1.0))

    def model(x, y):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(60, len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    svi = vd.CompiledSVI(model, vd.guides.AutoMeanField(model), OPTIMIZERS["AdamW"], vd.TraceVD_ELBO())
    with pytest.warns(UserWarning, match="it packs sequences .*whose shapes depend on the lengths.*padded batch"):
        for _ in range(3):
            svi.step(X, Y)


def test_a_scheduler_on_a_compiled_optimizer_warns_of_nothing(graphs):
    model, guide = regression()
    guide(X, Y)
    svi = vd.CompiledSVI(model, guide, functools.partial(torch.optim.AdamW, lr=0.1), vd.TraceVD_ELBO(), strict=True)
    early = torch.optim.lr_scheduler.ExponentialLR(svi.optimizer, 0.5)
    for _ in range(4):
        svi.step(X, Y)
        early.step()
    late = torch.optim.lr_scheduler.ExponentialLR(svi.optimizer, 0.5)
    for _ in range(3):
        svi.step(X, Y)
        late.step()
    assert svi.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 2**7) and len(graphs) == 1


def test_hooks_on_steps_of_the_optimizer_keep_steps_eager(graphs):
    model, guide = regression()
    svi = vd.CompiledSVI(model, guide, OPTIMIZERS["AdamW"], vd.TraceVD_ELBO())
    for _ in range(4):
        svi.step(X, Y)
    seen = []
    svi.optimizer.register_step_post_hook(lambda *args: seen.append(1))
    with pytest.warns(UserWarning, match="the optimizer has hooks on its steps"):
        for _ in range(3):
            svi.step(X, Y)
    assert len(seen) == 3


@pytest.mark.slow
def test_memory_stays_flat_over_steps_and_new_objects(graphs):
    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    gone, counts = [], []
    for i in range(12):
        pyro.clear_param_store()
        model, guide = regression()
        svi = vd.CompiledSVI(model, guide, OPTIMIZERS["AdamW"], vd.TraceVD_ELBO(), strict=True)
        for _ in range(300 if i == 11 else 4):
            svi.step(X, Y)
        gone.append(weakref.ref(guide))
        graphs.clear()
        if i in (4, 10, 11):
            counts.append(tensors())
    assert len(set(counts)) == 1, counts
    pyro.clear_param_store()
    del svi, model, guide
    gc.collect()
    assert not any(one() for one in gone)
