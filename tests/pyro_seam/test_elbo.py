"""TraceVD_ELBO: what the loss is, term by term, without sampling error."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vd as vd
from helpers.oracles import assert_mean_close
from helpers.programs import NOTHING, Program, data, normal_nll, two_layer_net
from pyro_vd import TraceVD_ELBO, posteriors, site_terms

X, Y = data()


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **({"rtol": 1e-9, "atol": 1e-9} | tolerance))


@pytest.mark.parametrize("estimator", ["local", "shared", "per_example", "flipout"])
def test_loss_is_scaled_data_term_plus_kl(estimator):
    program = Program(two_layer_net(), log_sigma2=NOTHING)
    terms = TraceVD_ELBO(estimator).terms(program.model, program.guide, X, Y)
    close(terms.data, 30 / 6 * program.mean_nll(X, Y))
    close(terms.kl_total, program.kl_total())
    close(terms.loss, terms.data + terms.kl_total)
    assert terms.loss.dim() == 0 and terms.loss.dtype == torch.float64 and terms.loss.requires_grad


@pytest.mark.parametrize(("dataset_size", "rows"), [(6, 6), (60, 6), (60, 2), (60000, 1)])
def test_plates_scale_the_data_term_and_nothing_else(dataset_size, rows):
    program = Program(two_layer_net(), dataset_size=dataset_size, log_sigma2=NOTHING)
    terms = TraceVD_ELBO().terms(program.model, program.guide, X[:rows], Y[:rows])
    close(terms.data, dataset_size / rows * program.mean_nll(X[:rows], Y[:rows]))
    close(terms.kl_total, program.kl_total())


def test_kl_is_summed_over_weights_once_and_not_over_layers():
    # One layer's KL does not depend on how many others there are; the total is the sum, not a mean.
    for width, depth in ((1, 1), (5, 2), (8, 4)):
        net = nn.Sequential(nn.Linear(3, width), *(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 2))
        program = Program(net.double())
        pyro.clear_param_store()
        terms = TraceVD_ELBO().terms(program.model, program.guide, X, Y)
        expected = program.kl_per_site()
        assert list(terms.kl) == [f"net.{layer}.weight" for layer in range(depth + 2)]
        for site, value in expected.items():
            close(terms.kl[site], value)
        close(terms.loss - terms.data, sum(expected.values()))


def test_gradient_of_the_kl_reaches_every_parameter_once():
    program = Program(two_layer_net())
    parameters = list(program.of_guide)
    actual = torch.autograd.grad(
        TraceVD_ELBO().terms(program.model, program.guide, X, Y).kl_total, parameters, retain_graph=True
    )
    for one, other in zip(actual, torch.autograd.grad(program.kl_total(), parameters), strict=True):
        close(one, other)


def test_kl_is_fresh_in_every_call():
    program = Program(two_layer_net())
    loss = TraceVD_ELBO()

    def kl():
        return loss.terms(program.model, program.guide, X, Y).kl_total

    close(kl(), program.kl_total())  # before anything was called
    for site, parameter in program.log_sigma2.items():
        with torch.no_grad():
            parameter += 1.5
        close(kl(), program.kl_total())
        program.loc[site].requires_grad_(False)  # a frozen layer
        parameter.requires_grad_(False)
        with torch.no_grad():
            parameter -= 0.7
        close(kl(), program.kl_total())


def test_model_scale_alone_is_refused():
    # An analytic KL has one scale: the model's would be silently ignored, and so would an annealing by it.
    program = Program(two_layer_net())
    with pytest.raises(
        ValueError, match=r"site 'net.0.weight': expected the same scale .* write TraceVD_ELBO\(kl_weight"
    ):
        TraceVD_ELBO().loss(poutine.scale(program.model, 0.1), program.guide, X, Y)
    with pytest.raises(ValueError, match=r"expected the same scale in model and guide, got 1.0 and 0.1"):
        TraceVD_ELBO().loss(program.model, poutine.scale(program.guide, 0.1), X, Y)


def test_model_scale_alone_is_refused_as_a_tensor_too():
    program = Program(two_layer_net())
    scale = torch.tensor(0.1, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected the same scale in model and guide"):
        TraceVD_ELBO().loss(poutine.scale(program.model, scale), program.guide, X, Y)


@pytest.mark.parametrize("scale", [0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_scale_on_model_and_guide_scales_everything(scale):
    program = Program(two_layer_net(), log_sigma2=NOTHING)
    expected = TraceVD_ELBO().loss(program.model, program.guide, X, Y)
    actual = TraceVD_ELBO().loss(poutine.scale(program.model, scale), poutine.scale(program.guide, scale), X, Y)
    assert actual == pytest.approx(0.1 * expected, rel=1e-9)


def test_kl_weight_weighs_the_kl_and_is_read_at_every_step():
    program = Program(two_layer_net(), log_sigma2=NOTHING)
    kl, likelihood = float(program.kl_total().detach()), 5 * float(program.mean_nll(X, Y).detach())
    loss = TraceVD_ELBO(kl_weight=0.25)

    def check(weight):
        with torch.no_grad():
            terms = loss.terms(program.model, program.guide, X, Y)
        assert float(terms.loss) == pytest.approx(likelihood + weight * kl, rel=1e-9)
        assert float(terms.negative_elbo) == pytest.approx(likelihood + kl, rel=1e-9)  # comparable over a warm-up
        assert float(terms.kl_total) == pytest.approx(kl, rel=1e-9)  # as it is

    check(0.25)
    loss.kl_weight = 1 / 3
    check(1 / 3)
    schedule = torch.tensor(0.5, dtype=torch.float64)
    loss.kl_weight = schedule
    check(0.5)
    schedule.fill_(0.75)
    check(0.75)
    loss.kl_weight = 0
    check(0)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", None])
def test_kl_weight_is_a_finite_number(value):
    with pytest.raises(ValueError, match="kl_weight: expected a finite number >= 0, got"):
        TraceVD_ELBO(kl_weight=value)
    with pytest.raises(ValueError, match="kl_weight: expected a finite number >= 0, got"):
        TraceVD_ELBO().kl_weight = value


def test_kl_weight_tensor_has_no_dimensions():
    with pytest.raises(ValueError, match=r"kl_weight: expected a number or a 0-dim tensor, got shape \(1,\)"):
        TraceVD_ELBO(kl_weight=torch.ones(1))


def test_terms_name_every_site_and_add_up():
    def model(x, y):
        noise = pyro.sample("noise", dist.LogNormal(torch.zeros(()).double(), 1.0))
        mean = bnn(x)
        with vd.data_plate(12, len(x)):
            pyro.sample("y", dist.Normal(mean[:, 0], noise), obs=y[:, 0])
            pyro.sample("z", dist.Normal(mean[:, 1], 2.0), obs=y[:, 1])

    def guide(x, y):
        pyro.sample("noise", dist.LogNormal(torch.tensor(0.3).double(), 0.2))
        program.guide(x, y)

    program = Program(two_layer_net())
    bnn = program.bnn
    terms = TraceVD_ELBO(num_particles=3, kl_weight=0.5).terms(model, guide, X, Y)
    assert set(terms.nll) == {"y", "z"} and set(terms.kl) == {"net.0.weight", "net.2.weight", "noise"}
    close(terms.loss, sum(terms.nll.values()) + 0.5 * sum(terms.kl.values()))
    close(terms.negative_elbo, sum(terms.nll.values()) + sum(terms.kl.values()))


def test_particles_are_averaged():
    program = Program(two_layer_net())
    for estimator in ("local", "shared"):
        pyro.set_rng_seed(1)
        single = [TraceVD_ELBO(estimator).terms(program.model, program.guide, X, Y) for _ in range(5)]
        pyro.set_rng_seed(1)
        mean = TraceVD_ELBO(estimator, num_particles=5).terms(program.model, program.guide, X, Y)
        close(mean.data, torch.stack([terms.data for terms in single]).mean())
        close(mean.kl_total, single[0].kl_total)
        assert torch.stack([terms.data for terms in single]).std() > 0


def test_the_same_loss_by_every_entry():
    program = Program(two_layer_net())
    loss = TraceVD_ELBO()
    values = []
    for call in (loss.loss, loss.differentiable_loss, loss.loss_and_grads, lambda *args: loss(*args[:2])(*args[2:])):
        pyro.set_rng_seed(5)
        value = call(program.model, program.guide, X, Y)
        values.append(value if isinstance(value, float) else float(value.detach()))
    pyro.set_rng_seed(5)
    values.append(float(loss.terms(program.model, program.guide, X, Y).loss.detach()))
    assert len(set(values)) == 1


def test_no_weight_is_drawn_or_scored_under_local(monkeypatch):
    def fail(*args):
        raise AssertionError("a weight was drawn, or its log_prob evaluated")

    program = Program(two_layer_net())
    for name in ("rsample", "sample", "log_prob"):
        monkeypatch.setattr(posteriors.DropoutNormal, name, fail)
    monkeypatch.setattr(vd.ImproperLogUniform, "log_prob", fail)
    assert torch.isfinite(TraceVD_ELBO().terms(program.model, program.guide, X, Y).loss)
    with pytest.raises(AssertionError, match="a weight was drawn"):
        TraceVD_ELBO("shared").terms(program.model, program.guide, X, Y)


def test_no_host_synchronisation_in_differentiable_loss(monkeypatch):
    program = Program(two_layer_net())
    loss = TraceVD_ELBO()
    loss.differentiable_loss(program.model, program.guide, X, Y)
    pyro.enable_validation(False)

    def fail(self, *args):
        raise AssertionError("host synchronisation")

    with monkeypatch.context() as patch:
        for name in ("item", "__bool__", "__float__", "__int__", "tolist", "numpy", "cpu"):
            patch.setattr(torch.Tensor, name, fail)
        loss.differentiable_loss(program.model, program.guide, X, Y).backward()


def test_the_analytic_rule_is_the_branch_that_ran(monkeypatch):
    seen = []
    rule = site_terms.kl_divergence
    monkeypatch.setattr(site_terms, "kl_divergence", lambda q, p: seen.append((q, p)) or rule(q, p))
    program = Program(two_layer_net())
    # With analytic_only=False too: sampling is for pairs without a rule.
    for loss in (TraceVD_ELBO(), TraceVD_ELBO(analytic_only=False)):
        seen.clear()
        terms = loss.terms(program.model, program.guide, X, Y)
        assert [type(q.base_dist) for q, _ in seen] == [vd.DropoutNormal] * 2
        assert [type(p.base_dist) for _, p in seen] == [vd.ImproperLogUniform] * 2
        close(terms.kl_total, program.kl_total())


def test_expected_loss_of_a_linear_model_is_the_analytic_elbo():
    net = nn.Linear(3, 2).double()
    program = Program(net, prior=dist.Normal(torch.zeros(()).double(), 1.0), dataset_size=6)
    loc, variance = program.loc["net.weight"].detach(), program.log_sigma2["net.weight"].detach().exp()
    kl = 0.5 * (variance + loc.square() - 1 - variance.log()).sum()
    expected = normal_nll(X @ loc.T + net.bias.detach(), Y, X.square() @ variance.T).sum() + kl
    for estimator in ("local", "shared", "per_example", "flipout"):
        loss = TraceVD_ELBO(estimator)
        with torch.no_grad():
            draws = torch.stack([loss.terms(program.model, program.guide, X, Y).loss for _ in range(400)])
        assert draws.std() > 0.1
        assert_mean_close(draws, expected)
