"""TraceVD_ELBO in use: with pyro.infer.SVI, with torch.optim, and the stock ELBO under vd.lrt."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_vd as vd
from helpers.programs import Program, data, two_layer_net
from pyro_vd import TraceVD_ELBO
from pyro_vd.guides import AutoSparseVD

X, Y = data()


def values(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def trained(program: Program) -> set[int]:
    """All parameters but the net's own values of its random weights."""
    own = {"bnn.net.0.weight", "bnn.net.2.weight"}
    return {id(parameter) for name, parameter in program.named_parameters() if name not in own}


def expected_loss_falls(program: Program, step, steps: int = 150) -> None:
    """The loss over many draws is lower after training than before, far beyond its noise."""

    def evaluate():
        with torch.no_grad():
            loss = TraceVD_ELBO(num_particles=100)
            return float(loss.terms(program.model, program.guide, X, Y).loss)

    before = evaluate()
    for _ in range(steps):
        step()
    assert evaluate() < 0.7 * before


def test_svi_trains_guide_and_deterministic_parameters():
    program = Program(two_layer_net())
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.02}), TraceVD_ELBO())
    before = values(program)
    expected_loss_falls(program, lambda: svi.step(X, Y))
    names = [name for name, _ in program.named_parameters()]
    own = {"bnn.net.0.weight", "bnn.net.2.weight"}  # the net's own value of a random weight is not used
    for name, old, new in zip(names, before, values(program), strict=True):
        assert torch.equal(old, new) == (name in own), name


def test_svi_evaluates_without_training():
    program = Program(two_layer_net())
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.02}), TraceVD_ELBO())
    before = values(program)
    assert isinstance(svi.evaluate_loss(X, Y), float)
    assert all(torch.equal(old, new) for old, new in zip(before, values(program), strict=True))


def test_first_step_of_svi_is_the_optimizer_s_step_on_the_gradient():
    program = Program(two_layer_net())
    parameters = list(program.of_guide)
    pyro.set_rng_seed(3)
    gradients = torch.autograd.grad(TraceVD_ELBO().differentiable_loss(program.model, program.guide, X, Y), parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    pyro.set_rng_seed(3)
    SVI(program.model, program.guide, pyro.optim.SGD({"lr": 1e-3}), TraceVD_ELBO()).step(X, Y)
    for parameter, old, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 1e-3 * gradient)


def test_torch_optim_trains_modules_that_functions_refer_to():
    program = Program(two_layer_net())

    def model(x, y):
        program.model(x, y)

    def guide(x, y):
        program.guide(x, y)

    loss = TraceVD_ELBO()(model, guide)
    assert {id(p) for p in loss.parameters()} == trained(program)
    optim = torch.optim.Adam(loss.parameters(), lr=0.02)
    biases = [program.bnn.net[0].bias.detach().clone(), program.bnn.net[2].bias.detach().clone()]

    def step():
        optim.zero_grad()
        value = loss(X, Y)
        assert value.dim() == 0
        value.backward()
        optim.step()

    expected_loss_falls(program, step)
    for old, layer in zip(biases, (0, 2), strict=True):
        assert not torch.equal(old, program.bnn.net[layer].bias)


def test_torch_optim_with_an_automatic_guide():
    bnn = vd.BayesianModule(two_layer_net(), vd.ImproperLogUniform())

    def model(x, y):
        mean = bnn(x)
        with vd.data_plate(30, len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    guide = AutoSparseVD(model)
    loss = TraceVD_ELBO()(model, guide)
    loss(X, Y)
    names = [name for name, _ in loss.named_parameters()]
    assert len(names) == 6  # loc and log_sigma2 of two weights; the net's two biases
    loss(X, Y).backward()
    assert all(parameter.grad is not None for parameter in guide.parameters())
    assert bnn.net[0].bias.grad is not None and bnn.net[0].weight.grad is None


def test_torch_optim_with_pyro_modules():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.tensor(0.5))
            self.slope = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, x, y):
            pyro.sample("y", dist.Normal(self.slope * x + self.offset, 1.0).to_event(1), obs=y)

    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.1))

        def forward(self, x, y):
            pyro.sample("slope", vd.DropoutNormal(self.loc, log_sigma2=-3.0))

    loss = TraceVD_ELBO("shared")(Model(), Guide())
    loss(torch.ones(3), torch.ones(3)).backward()
    assert len(list(loss.parameters())) == 2
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_parameters_that_the_loss_module_cannot_see_are_warned_of_once():
    def model():
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(0.3))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("hidden_loc", torch.tensor(0.0)), 1.0))

    loss = TraceVD_ELBO()(model, guide)
    with pytest.warns(UserWarning, match=r"expected every parameter in .parameters\(\) .*\['hidden_loc'\].*PyroModule"):
        loss()
    loss()  # a second warning would be an error here


def test_a_model_that_is_a_bound_method_contributes_its_module():
    program = Program(two_layer_net())
    loss = TraceVD_ELBO()(program.model, program.guide)
    assert {id(p) for p in loss.parameters()} == trained(program)
    loss(X, Y)


def test_stock_mean_field_elbo_under_lrt_is_the_same_loss_for_the_same_noise(monkeypatch):
    program = Program(two_layer_net())
    parameters = list(program.of_guide)
    shapes = []
    noise = {(6, 4): torch.randn(6, 4).double(), (6, 2): torch.randn(6, 2).double()}

    def fixed(like, **kwargs):
        shapes.append(tuple(like.shape))
        return noise[tuple(like.shape)]

    results = []
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", fixed)
        for loss, guide in ((TraceVD_ELBO(), program.guide), (TraceMeanField_ELBO(), vd.lrt(program.guide))):
            value = loss.differentiable_loss(program.model, guide, X, Y)
            results.append([value.detach(), *torch.autograd.grad(value, parameters)])
    assert shapes == [(6, 4), (6, 2)] * 2  # one noise tensor a layer, nothing else
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_vectorized_particles_of_a_net_are_refused_with_advice():
    program = Program(two_layer_net())
    loss = TraceVD_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(
        ValueError, match=r"site 'net.0.weight': expected a weight of shape \(4, 3\).*vectorize_particles"
    ):
        loss.loss(program.model, program.guide, X, Y)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_num_particles_is_a_whole_number(value):
    with pytest.raises(ValueError, match="num_particles: expected a whole number >= 1, got"):
        TraceVD_ELBO(num_particles=value)


def test_unknown_estimator_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="estimator: expected one of 'local', 'shared', 'per_example', 'flipout', got 'x'"
    ):
        TraceVD_ELBO("x")


def test_unknown_keyword_is_an_error():
    with pytest.raises(TypeError, match="klweight"):
        TraceVD_ELBO(klweight=0.1)
