"""Gradients of TraceVD_ELBO: unbiased, of lower variance under "local"; and the Monte Carlo KL where asked for."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import register_kl

import pyro_vd as vd
from helpers.oracles import assert_mean_close, standard_errors
from helpers.programs import NOTHING, Program, data, normal_nll, two_layer_net
from pyro_vd import TraceVD_ELBO

X, Y = data()


def gradients(program: Program, loss: TraceVD_ELBO, draws: int) -> torch.Tensor:
    """Gradient of the loss for every parameter of the guide, flat, one row a draw."""
    parameters = list(program.of_guide)
    rows = []
    for _ in range(draws):
        value = loss.differentiable_loss(program.model, program.guide, X, Y)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    return torch.stack(rows)


def expected_loss(net: nn.Linear, loc: torch.Tensor, log_sigma2: torch.Tensor, kl: str) -> torch.Tensor:
    """The loss of a linear net with Gaussian noise, its expectation over draws in closed form."""
    nll = normal_nll(X @ loc.T + net.bias.detach(), Y, X.square() @ log_sigma2.exp().T).sum()
    return 5 * nll + vd.kl.kl_log_uniform(log_sigma2 - loc.square().log(), kl).sum()


@pytest.mark.parametrize("estimator", ["local", "shared", "per_example", "flipout"])
def test_gradients_average_to_finite_differences_of_the_expected_loss(estimator):
    net = nn.Linear(3, 2).double()
    program = Program(net, kl="exact")
    loc, log_sigma2 = program.loc["net.weight"].detach(), program.log_sigma2["net.weight"].detach()
    step, differences = 1e-5, []
    for tensor in (loc, log_sigma2):
        for i in range(tensor.numel()):
            shift = torch.zeros_like(tensor).flatten()
            shift[i] = step
            shift = shift.reshape(tensor.shape)
            ends = [(loc + s * shift, log_sigma2) if tensor is loc else (loc, log_sigma2 + s * shift) for s in (1, -1)]
            up, down = (expected_loss(net, *end, "exact") for end in ends)
            differences.append((up - down) / (2 * step))
    draws = gradients(program, TraceVD_ELBO(estimator), 500)
    assert (draws.std(0) > 1e-3).all()
    assert_mean_close(draws, torch.stack(differences))


@pytest.mark.slow
def test_local_has_a_lower_gradient_variance_than_shared(capsys):
    program = Program(two_layer_net(), log_sigma2=-1.0)
    samples = {estimator: gradients(program, TraceVD_ELBO(estimator), 600) for estimator in ("local", "shared")}
    squares = {name: (draws - draws.mean(0)).square().sum(1) for name, draws in samples.items()}
    means = {name: float(values.mean()) for name, values in squares.items()}
    error = sum(values.var() / len(values) for values in squares.values()).sqrt()
    odds = float((squares["shared"].mean() - squares["local"].mean()) / error)
    with capsys.disabled():
        print(f"\n  gradient variance, two layers: {means}, {odds:.1f} standard errors apart")
    assert odds > standard_errors()


class Ruleless(pyro.distributions.torch_distribution.TorchDistribution):
    """A Gaussian that torch has no KL rule for."""

    arg_constraints = {}
    support = dist.constraints.real
    has_rsample = True

    def __init__(self, loc, scale):
        self.normal = dist.Normal(torch.as_tensor(loc).double(), torch.as_tensor(scale).double())
        super().__init__(self.normal.batch_shape)

    def expand(self, batch_shape, _instance=None):
        return Ruleless(self.normal.loc.expand(batch_shape), self.normal.scale.expand(batch_shape))

    def log_prob(self, value):
        return self.normal.log_prob(value)

    def rsample(self, sample_shape=()):
        return self.normal.rsample(torch.Size(sample_shape))


def test_a_pair_without_a_rule_is_an_error_that_names_it():
    program = Program(two_layer_net(), prior=dist.Laplace(torch.zeros(()).double(), 1.0))
    expected = (
        r"site 'net.0.weight': expected a pair of distributions with a KL rule, got guide and prior "
        r"DropoutNormal.to_event\(2\) and Laplace.to_event\(2\); register one .*register_kl.*analytic_only=False"
    )
    for call in (TraceVD_ELBO().loss, TraceVD_ELBO().differentiable_loss, TraceVD_ELBO("shared").loss_and_grads):
        with pytest.raises(ValueError, match=expected):
            call(program.model, program.guide, X, Y)


@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_monte_carlo_kl_of_a_weight_is_unbiased(estimator):
    program = Program(nn.Linear(3, 2).double(), prior=Ruleless(0.0, 1.0))
    loss = TraceVD_ELBO(estimator, analytic_only=False)
    loc, log_sigma2 = program.loc["net.weight"].detach(), program.log_sigma2["net.weight"].detach()
    analytic = 0.5 * (log_sigma2.exp() + loc.square() - 1 - log_sigma2).sum()
    with torch.no_grad():
        draws = torch.stack([loss.terms(program.model, program.guide, X, Y).kl_total for _ in range(500)])
    assert draws.std() > 0.01  # sampled, not analytic
    assert_mean_close(draws, analytic)


@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_gradient_of_the_monte_carlo_kl_is_unbiased(estimator):
    program = Program(nn.Linear(3, 2).double(), prior=Ruleless(0.0, 1.0))
    loss = TraceVD_ELBO(estimator, analytic_only=False, kl_weight=1.0)
    parameters = list(program.of_guide)
    rows = []
    for _ in range(500):
        kl = loss.terms(program.model, program.guide, X, Y).kl_total
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(kl, parameters)]))
    loc, log_sigma2 = (parameter.detach().flatten() for parameter in parameters)
    assert_mean_close(torch.stack(rows), torch.cat([loc, 0.5 * (log_sigma2.exp() - 1)]))


def test_monte_carlo_kl_of_a_latent_variable_equals_the_analytic_one():
    def program(prior):
        def model():
            z = pyro.sample("z", prior(0.5, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

        return model

    def guide():
        pyro.sample("z", dist.Normal(torch.tensor(-0.2).double(), 0.7))

    analytic = TraceVD_ELBO().terms(program(lambda *args: dist.Normal(*args)), guide).kl_total
    loss = TraceVD_ELBO(analytic_only=False)
    draws = torch.stack([loss.terms(program(Ruleless), guide).kl_total for _ in range(2000)])
    assert draws.std() > 0.01
    assert_mean_close(draws, analytic.double())


def test_a_registered_rule_is_used():
    class Mine(Ruleless):
        def expand(self, batch_shape, _instance=None):
            return Mine(self.normal.loc.expand(batch_shape), self.normal.scale.expand(batch_shape))

    program = Program(two_layer_net(), prior=Mine(0.0, 1.0))
    with pytest.raises(ValueError, match="expected a pair of distributions with a KL rule, .* and Mine"):
        TraceVD_ELBO().loss(program.model, program.guide, X, Y)
    register_kl(vd.DropoutNormal, Mine)(lambda q, p: q.loc.detach() * 0 + 0.125)
    terms = TraceVD_ELBO().terms(program.model, program.guide, X, Y)
    assert {site: float(value) for site, value in terms.kl.items()} == {"net.0.weight": 1.5, "net.2.weight": 1.0}


def test_gradients_are_finite_where_inputs_and_weights_are_zero():
    net = two_layer_net()
    with torch.no_grad():
        net[0].weight[0].zero_()
    program = Program(net, kl="exact")
    x = X.clone()
    x[0] = 0
    x[:, 1] = 0
    loss = TraceVD_ELBO().differentiable_loss(program.model, program.guide, x, Y)
    for gradient in torch.autograd.grad(loss, list(program.of_guide)):
        assert torch.isfinite(gradient).all()


def test_gradient_of_a_noiseless_weight_is_that_of_the_plain_net():
    net = two_layer_net()
    program = Program(net, log_sigma2=NOTHING)
    terms = TraceVD_ELBO().terms(program.model, program.guide, X, Y)
    actual = torch.autograd.grad(terms.data, list(program.loc.values()), retain_graph=True)
    expected = torch.autograd.grad(5 * program.mean_nll(X, Y), list(program.loc.values()))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
