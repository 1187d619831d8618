"""Buffers change in steps that succeed, and in nothing else: over nets, calls and ways to fail."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X, Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 8)


class Counting(nn.Module):
    """Buffers of whole numbers, written to, of truth values and complex numbers, put anew; and one that grows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("flag", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("history", torch.zeros(0))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))  # stays as it is, and is not finite

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.flag = ~self.flag
            self.phase = self.phase * 1j
            self.history = torch.cat([self.history, x.detach().mean().reshape(1)])
        return x


NETS = {
    "batch norm": lambda: nn.BatchNorm1d(5),
    "cumulative batch norm": lambda: nn.BatchNorm1d(5, momentum=None),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.InstanceNorm1d(1, track_running_stats=True), nn.Flatten()
    ),
    "batch norm in a net in eval mode": lambda: nn.BatchNorm1d(5),
    "no floats": Counting,
    "batch norm beside a mask of infinities": lambda: nn.Sequential(nn.BatchNorm1d(5), Counting()),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5)).requires_grad_(False),
}


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.failing = False

    def forward(self, x):
        if self.failing:
            raise ArithmeticError("no")
        return x


class Program:
    def __init__(self, name):
        pyro.set_rng_seed(0)
        self.failing = Failing()
        self.net = nn.Sequential(nn.Linear(3, 5), NETS[name](), nn.Linear(5, 2), self.failing)
        if "eval mode" in name:
            self.net.training = False
        self.bnn = vd.BayesianModule(self.net, dist.Normal(0.0, 1.0), where=["0.weight", "2.weight"])
        self.guide = AutoMeanField(self.model)

    def model(self, x, y=None):
        logits = self.bnn(x)
        with vd.data_plate(16, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def svi(self, elbo=None):
        return SVI(self.model, self.guide, pyro.optim.Adam({"lr": 0.01}), elbo or vd.TraceVD_ELBO())

    def buffers(self):
        return {name: buffer.clone() for name, buffer in self.net.named_buffers()}


def failed(error, call):
    def action(program):
        with pytest.raises(error):
            call(program)

    return action


def failing_step(program):
    program.failing.failing = True
    program.svi().step(X, Y)


NO_STEPS = {
    "bad labels": failed(ValueError, lambda p: p.svi().step(X, torch.full((16,), 7))),
    "NaN": failed(ValueError, lambda p: p.svi().step(X * torch.nan, Y)),
    "an exception in the net": failed(ArithmeticError, failing_step),
    "bad labels, loss module": failed(
        ValueError, lambda p: vd.TraceVD_ELBO()(p.model, p.guide)(X, torch.full((16,), 7))
    ),
    "the second of two particles": failed(
        ValueError, lambda p: p.svi(vd.TraceVD_ELBO(num_particles=2)).step(X, torch.full((16,), 7))
    ),
    "a guide that sees its model": lambda p: AutoMeanField(p.model)(X, Y),
    "a loss": lambda p: vd.TraceVD_ELBO().loss(p.model, p.guide, X, Y),
    "evaluate_loss": lambda p: p.svi().evaluate_loss(X, Y),
    "posterior_predictive": lambda p: [
        vd.posterior_predictive(p.model, p.guide, 100 * X, num_samples=2, mode=mode)
        for mode in ("weights", "local", "mean")
    ],
    "Predictive": lambda p: Predictive(p.model, guide=p.guide, num_samples=2)(100 * X),
    "lrt_report": lambda p: vd.lrt_report(p.model, p.guide, X, Y),
    "gradient_variance": lambda p: vd.gradient_variance(p.model, p.guide, vd.TraceVD_ELBO(), X, Y, num_draws=2),
}


@pytest.mark.parametrize("what", NO_STEPS)
@pytest.mark.parametrize("name", NETS)
def test_what_is_no_step_that_succeeds_changes_no_buffer(name, what):
    program = Program(name)
    program.svi().step(X, Y)
    before, own = program.buffers(), dict(program.net.named_buffers())
    NO_STEPS[what](program)
    after = program.buffers()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    assert all(buffer is own[key] for key, buffer in program.net.named_buffers())
    program.failing.failing = False
    program.svi().step(X, Y)


@pytest.mark.parametrize("elbo", [vd.TraceVD_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("name", NETS)
def test_a_step_updates_the_buffers_once(name, elbo):
    program = Program(name)
    svi = program.svi(elbo())
    svi.step(X, Y)
    before = program.buffers()
    for step in (2, 3):
        svi.step(X, Y)
        for key, buffer in program.net.named_buffers():
            if key.endswith(("num_batches_tracked", "calls")) and name != "instance norm":
                assert int(buffer) == step, key
            elif key.endswith(("running_mean", "running_var", "flag", "phase", "_u")) and step == 2:
                assert not torch.equal(buffer, before[key]), key
            elif key.endswith("history"):
                assert len(buffer) == step


def test_in_evaluation_mode_a_net_keeps_its_buffers():
    program = Program("batch norm")
    program.svi().step(X, Y)
    program.net.eval()
    before = program.buffers()
    program.svi().step(X, Y)
    assert all(torch.equal(value, before[key]) for key, value in program.buffers().items())
