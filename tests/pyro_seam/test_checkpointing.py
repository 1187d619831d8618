"""Activation checkpointing gives the gradient of the net without it, or is refused; over estimators."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

ESTIMATORS = ("local", "shared", "per_example", "flipout")
Y = torch.zeros(3, 2, dtype=torch.float64)
WAYS = ["non-reentrant", "in pieces", "nested", "twice", "own weight", "recurrent", "spectral norm", "batch norm"]


class Net(nn.Module):
    def __init__(self, way: str, saving: bool):
        super().__init__()
        self.way, self.saving = way, saving
        middle = nn.BatchNorm1d(4) if way == "batch norm" else nn.Tanh()
        self.block = nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.other, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.rnn = nn.LSTM(4, 4)
        if way == "spectral norm":
            nn.utils.parametrizations.spectral_norm(self.block[2])

    def through(self, function, x, **options):
        return checkpoint(function, x, use_reentrant=False, **options) if self.saving else function(x)

    def forward(self, x):
        if self.way == "in pieces":
            x = checkpoint_sequential(self.block, 2, x, use_reentrant=False) if self.saving else self.block(x)
        elif self.way == "nested":
            x = self.through(lambda h: self.block[3:](self.block[2](self.through(self.block[:2], h))), x)
        elif self.way == "twice":
            x = self.through(self.other, self.through(self.block, x))
        elif self.way == "own weight":
            x = self.through(lambda h: torch.tanh(nn.functional.linear(h, self.weight)), x)
        elif self.way == "recurrent":  # drawn once within the region, before noise of its own
            x = self.through(lambda h: self.other(self.rnn(h.unsqueeze(0))[0][0]), x)
        elif self.way == "reentrant":
            x = checkpoint(self.block, x, use_reentrant=True) if self.saving else self.block(x)
        elif self.way == "other noise":
            x = self.through(self.block, x, preserve_rng_state=False)
        else:
            x = self.through(self.block, x)
        return self.head(x)


class Program:
    def __init__(self, way: str, saving: bool, estimator: str, x_needs_gradient: bool = False):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.x = torch.randn(3, 4, dtype=torch.float64).requires_grad_(x_needs_gradient)
        where = ["*.weight", "weight", "rnn.weight_*", "*original"] if way == "spectral norm" else None
        where = where or ["block.*weight", "other.*weight", "head.weight", "weight", "rnn.weight_*"]
        self.bnn = vd.BayesianModule(Net(way, saving).double(), dist.Normal(0.0, 1.0), where=where)
        self.guide = AutoMeanField(self.model, init_log_sigma2=-1.0)
        shared = ["net.block.2.parametrizations.weight.original"] if way == "spectral norm" else []
        self.elbo = vd.TraceVD_ELBO(estimator, shared_sites=shared)

    def model(self, x, y=None):
        mean = self.bnn(x)
        with vd.data_plate(3, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    def loss(self):
        self.guide(self.x, Y)
        torch.manual_seed(1)
        return self.elbo.differentiable_loss(self.model, self.guide, self.x, Y)

    def parameters(self):
        own = [p for name, p in self.bnn.net.named_parameters() if name.endswith("bias")]
        return [*(p for _, p in sorted(self.guide.named_parameters())), *own]


def by_backward(program):
    program.loss().backward()


def by_backward_twice(program):
    loss = program.loss()
    loss.backward(retain_graph=True)
    for parameter in program.parameters():
        parameter.grad = None
    loss.backward()


def by_grad(program):
    gradients = torch.autograd.grad(program.loss(), program.parameters(), allow_unused=True)
    for parameter, gradient in zip(program.parameters(), gradients, strict=True):
        parameter.grad = gradient


def by_second_derivative(program):
    gradients = torch.autograd.grad(program.loss(), program.parameters(), create_graph=True, allow_unused=True)
    sum(gradient.square().sum() for gradient in gradients if gradient is not None).backward()


def gradient(backward, *args, **options):
    program = Program(*args, **options)
    backward(program)
    assert all(type(parameter) is nn.Parameter for parameter in program.bnn.net.parameters())
    got = [parameter.grad for parameter in program.parameters()]
    return torch.cat([one.flatten() for one in got if one is not None])


@pytest.mark.filterwarnings("ignore:.*expected an operation with a rule")
@pytest.mark.parametrize("backward", [by_backward, by_backward_twice, by_grad, by_second_derivative])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_is_that_of_the_net_without_checkpointing(way, estimator, backward):
    expected = gradient(backward, way, False, estimator)
    got = gradient(backward, way, True, estimator)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_reentrant_checkpointing_with_one_draw_gives_the_gradient():
    expected = gradient(by_backward, "reentrant", False, "shared", x_needs_gradient=True)
    torch.testing.assert_close(gradient(by_backward, "reentrant", True, "shared", x_needs_gradient=True), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("backward", [by_backward, by_grad, by_second_derivative])
@pytest.mark.parametrize("x_needs_gradient", [True, False])
def test_reentrant_checkpointing_is_refused_where_a_gradient_would_be_lost(x_needs_gradient, backward, estimator):
    if estimator == "shared" and backward is by_backward and x_needs_gradient:
        return  # the test above
    program = Program("reentrant", True, estimator, x_needs_gradient)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        backward(program)
    assert all(type(parameter) is nn.Parameter for parameter in program.bnn.net.parameters())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_checkpointing_that_would_draw_other_noise_is_refused(estimator):
    program = Program("other noise", True, estimator)
    if estimator == "shared":
        torch.testing.assert_close(
            gradient(by_backward, "other noise", True, "shared"), gradient(by_backward, "other noise", False, "shared")
        )
        return
    with pytest.raises(ValueError, match="site 'net.block.* with preserve_rng_state=False; leave that argument out"):
        by_backward(program)


@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_checkpointing_of_the_whole_module_is_refused(estimator):
    program = Program("non-reentrant", False, estimator)

    def model(x, y=None):
        mean = checkpoint(program.bnn, x, use_reentrant=False)
        with vd.data_plate(3, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    program.guide(program.x, Y)
    loss = program.elbo.differentiable_loss(model, program.guide, program.x, Y)
    with pytest.raises(ValueError, match="got one in a backward pass.*Checkpoint layers inside the net instead"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:.*expected an operation with a rule")
def test_a_repeated_forward_pass_updates_no_buffer():
    def statistics(saving):
        program = Program("batch norm", saving, "local")
        by_backward(program)
        norm = program.bnn.net.block[1]
        return norm.running_mean, norm.running_var, norm.num_batches_tracked

    for got, expected in zip(statistics(True), statistics(False), strict=True):
        assert torch.equal(got, expected)


def test_a_loss_that_a_net_leaves_in_an_attribute_has_its_gradient_too():
    """The gradient enters the checkpointed layer from there alone."""

    class Noting(nn.Module):
        def __init__(self, saving):
            super().__init__()
            self.block, self.saving, self.penalty = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), saving, None

        def forward(self, x):
            h = checkpoint(self.block, x, use_reentrant=False) if self.saving else self.block(x)
            self.penalty = h.square().sum()
            return x

    def gradient(saving):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = Noting(saving)
        bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

        def model(x):
            bnn(x)
            pyro.factor("penalty", -net.penalty)

        guide = AutoMeanField(model)
        x = torch.ones(3, 4)
        guide(x)
        torch.manual_seed(0)
        vd.TraceVD_ELBO("shared").differentiable_loss(model, guide, x).backward()
        return torch.cat([parameter.grad.flatten() for parameter in guide.parameters()])

    torch.testing.assert_close(gradient(True), gradient(False))


@pytest.mark.parametrize("backward", [by_backward, by_backward_twice, by_grad, by_second_derivative])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_particle_is_repeated_with_its_own_weights(estimator, backward):
    def gradient(saving):
        program = Program("non-reentrant", saving, estimator)
        program.elbo = vd.TraceVD_ELBO(estimator, num_particles=3)
        backward(program)
        return torch.cat([p.grad.flatten() for p in program.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backward", [by_backward, by_grad, by_second_derivative])
def test_two_calls_of_a_net_in_one_model_are_repeated_each_with_its_weights(backward):
    def gradient(saving):
        program = Program("non-reentrant", saving, "shared")
        once = program.model

        def model(x, y=None):
            once(torch.cat([x, program.bnn(x)], 1)[:, :4], y)

        program.model = model
        backward(program)
        return torch.cat([p.grad.flatten() for p in program.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-12, atol=1e-12)
