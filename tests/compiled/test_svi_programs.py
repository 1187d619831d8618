"""CompiledSVI on every kind of program: guides, estimators, stock ELBOs, plain Pyro models, modules with buffers."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import constraints

import pyro_vd as vd
from helpers import guide_cases
from helpers.guide_cases import FAMILIES, make_guide
from helpers.svi_runs import Task, assert_same, run, values, without_compiler
from pyro_vd.guides import AutoSparseVD, AutoVariationalDropout

SGD = {"lr": 0.01}
X, Y = guide_cases.X, guide_cases.Y


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    return without_compiler(monkeypatch)


def expect_same_steps(make, batches, optim=lambda: pyro.optim.SGD(SGD), steps=6, tolerance=1e-4, programs=1):
    """``make`` returns model, guide, loss and a module whose buffers count; compiled and eager steps end alike."""
    found = []
    for kind in (functools.partial(vd.CompiledSVI, strict=True), SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, loss, module = make()
        svi = kind(model, guide, optim(), loss)
        losses = run(svi.step, batches, steps)
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        found.append((torch.tensor(losses), values(), buffers))
        if isinstance(svi, vd.CompiledSVI):
            assert len(svi._programs) == programs
    (compiled, eager) = found
    torch.testing.assert_close(compiled[0], eager[0], rtol=tolerance, atol=0.0)
    assert_same(compiled[1], eager[1], tolerance)
    assert_same(compiled[2], eager[2], tolerance)
    return eager


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_every_guide(name, options):
    def make():
        model, net, guide = make_guide(name, options)
        return model, guide, vd.TraceVD_ELBO(), net

    lr = 1e-6 if name == "AutoConcreteDropout" else SGD["lr"]  # its steep noise takes larger steps to no limit
    expect_same_steps(make, [(X, Y)], lambda: pyro.optim.SGD({**SGD, "lr": lr}))


@pytest.mark.parametrize("estimator", ["shared", "per_example", "flipout"])
def test_every_estimator(estimator):
    def make():
        task = Task(lambda: nn.Linear(5, 3))
        return task.model, task.guide, vd.TraceVD_ELBO(estimator, num_particles=2), task

    expect_same_steps(make, Task().batches)


def test_zeroed_weights_stay_zero_as_in_eager_steps():
    def make():
        task = Task(lambda: nn.Linear(5, 3), lambda model: AutoSparseVD(model, init_log_sigma2=0.0, zero_above=1.0))
        return task.model, task.guide, vd.TraceVD_ELBO(), task

    _, parameters, _ = expect_same_steps(make, Task().batches)
    locs = parameters["AutoSparseVD.locs.net.weight"]
    # A step moves a mean that the guide sets to 0 before the next one.
    assert 0 < (locs.abs() < 0.1).sum() < locs.numel()


def test_log_alpha_is_projected_as_in_eager_steps():
    def make():
        task = Task(lambda: nn.Linear(5, 3), lambda model: AutoVariationalDropout(model, init_log_alpha=-0.01))
        return task.model, task.guide, vd.TraceVD_ELBO(kl_weight=5.0), task

    _, parameters, _ = expect_same_steps(make, Task().batches)
    assert parameters["AutoVariationalDropout.log_alphas.net.weight"].min() > -0.01  # pushed up, and held


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_stock_elbos_read_their_value_and_stay_eager(elbo):
    found = []
    for kind in (vd.CompiledSVI, SVI):
        task = Task(lambda: nn.Linear(5, 3), prior=dist.Normal(0.0, 1.0))
        svi = kind(task.model, vd.lrt(task.guide), pyro.optim.SGD(SGD), elbo())
        if kind is SVI:
            losses = run(svi.step, task.batches, 4)
        else:
            message = (
                r"can be compiled, got one.* reads its loss, .*write pyro_vd.TraceVD_ELBO\(.*It is eager from here on"
            )
            with pytest.warns(UserWarning, match=message):
                losses = run(svi.step, task.batches, 4)
        found.append((losses, values()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert_same(found[0][1], found[1][1], 1e-6)


def test_a_plain_model_with_constraints():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.interval(0.1, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slope, scale), obs=y.float())

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(5))
        scale = pyro.param("slope_scale", torch.full((5,), 0.1), constraint=constraints.positive)
        pyro.sample("slope", dist.Normal(loc, scale).to_event(1))

    _, parameters, _ = expect_same_steps(
        lambda: (model, guide, vd.TraceVD_ELBO(num_particles=2), nn.Module()), Task().batches
    )
    assert sorted(parameters) == ["loc", "scale", "slope_scale"]


def test_modules_registered_by_pyro_module():
    def make():
        decoder, encoder = nn.Linear(2, 5), nn.Linear(5, 4)

        def model(x, y):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

        def guide(x, y):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                loc, log_scale = encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return model, guide, vd.TraceVD_ELBO(), decoder

    expect_same_steps(make, Task().batches, lambda: pyro.optim.Adam({"lr": 0.01}))


def test_buffers_and_dropout_layers(graphs):
    def make():
        layers = functools.partial(nn.Sequential, nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        task = Task(layers)
        return task.model, task.guide, vd.TraceVD_ELBO(), task

    *_, buffers = expect_same_steps(make, Task(sizes=(8, 8)).batches, steps=6, tolerance=1e-3)
    assert buffers["bnn.net.1.num_batches_tracked"] == 6  # a guide that sees its model changes none
    assert len(graphs) == 1


def test_evaluation_mode_is_another_program(graphs):
    found = []
    for kind in (vd.CompiledSVI, SVI):
        task = Task(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)))
        svi = kind(task.model, task.guide, pyro.optim.SGD(SGD), vd.TraceVD_ELBO())
        losses = run(svi.step, task.batches, 3)
        task.eval()
        losses += run(svi.step, task.batches, 3)
        task.train()
        losses += run(svi.step, task.batches, 3)
        found.append((losses, values() | dict(task.named_buffers())))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert_same(found[0][1], found[1][1])
    assert len(graphs) == 2


def test_an_attribute_of_the_guide_that_changes_is_another_program(graphs):
    found = []
    for kind in (vd.CompiledSVI, SVI):
        task = Task(lambda: nn.Linear(5, 3), lambda model: AutoSparseVD(model, init_log_sigma2=0.0))
        svi = kind(task.model, task.guide, pyro.optim.SGD(SGD), vd.TraceVD_ELBO())
        losses = run(svi.step, task.batches, 3)
        task.guide.zero_above = 0.5
        losses += run(svi.step, task.batches, 3)
        found.append((losses, values()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert_same(found[0][1], found[1][1])
    assert len(graphs) == 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(5, 1, batch_first=True), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.stack([x, x.roll(1, -1)], 1)
        return self.last(self.attention(x, x, x, need_weights=False)[0].flatten(1))


def normalised():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


@pytest.mark.parametrize("layers", [normalised, Attention], ids=["bias before BatchNorm", "bias of the keys"])
def test_where_a_gradient_is_only_rounding(monkeypatch, layers):
    """Adam moves it at full speed in a direction that is rounding's: that of a program with its data a little off."""

    def compiled(graph, example, **options):
        return lambda *inputs: graph(*(t * (1 + 1e-6) if t.shape == (8, 5) else t for t in inputs))

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    task = Task(layers)
    svi = vd.CompiledSVI(task.model, task.guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO(), strict=True)
    run(svi.step, task.batches, 9)
    assert len(svi._programs) == 1


def test_a_recurrent_layer_is_taken_apart(graphs):
    """oneDNN has it as one operation, which no compiler knows."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.last = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.lstm(x.unsqueeze(1))[0][:, -1])

    task = Task(Recurrent)
    svi = vd.CompiledSVI(task.model, task.guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO(), strict=True)
    run(svi.step, task.batches, 3)
    names = [str(node.target) for node in graphs[0].graph.nodes]
    assert any("mm" in name for name in names) and not any("rnn" in name or "lstm" in name for name in names)


def test_keywords_and_arguments_that_are_no_tensors(graphs):
    def model(data, offset=0.0, *, y):
        loc = pyro.param("loc", torch.zeros(5))
        with pyro.plate("data", len(data["x"])):
            pyro.sample("y", dist.Normal(data["x"] @ loc + offset, 1.0), obs=y.float())

    found, (x, y) = [], Task().batches[0]
    for kind in (vd.CompiledSVI, SVI):
        pyro.clear_param_store()
        svi = kind(model, lambda data, offset=0.0, *, y: None, pyro.optim.SGD(SGD), vd.TraceVD_ELBO())
        losses = [float(svi.step({"x": x}, offset, y=y)) for offset in (1.0, 1.0, 1.0, -2.0, -2.0, 1.0)]
        found.append((losses, values()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert_same(found[0][1], found[1][1])
    assert len(graphs) == 2
