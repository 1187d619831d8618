"""Which sites become random weights, under any ELBO, and what a step then does and does not do.

Losses are compared exactly, for the same seed. The statistical test on correlations allows the standard errors of
``oracles.standard_errors`` and fails by chance with probability 1e-6.
"""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_vd as vd
from helpers.oracles import assert_mean_close

PRIORS = {"log-uniform": lambda x: vd.ImproperLogUniform(), "normal": lambda x: dist.Normal(x.new_tensor(0.5), 2.0)}
ESTIMATORS = {"local": vd.lrt, "per_example": vd.per_example, "flipout": vd.flipout}
X, Y = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LOC, LOG_SIGMA2 = (torch.full((3, 3), value, dtype=torch.float64) for value in (0.5, -1.0))


def program(prior=PRIORS["normal"], loc: Tensor = LOC, log_sigma2: Tensor = LOG_SIGMA2):
    """A model of one linear layer and its guide."""

    def model(x: Tensor, y: Tensor | None = None):
        mean = F.linear(x, pyro.sample("w", prior(x).expand([3, 3]).to_event(2)))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    def guide(x: Tensor, y: Tensor | None = None):
        return pyro.sample("w", vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(2))

    return model, guide


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_stock_elbo_gives_the_same_loss_and_gradients_for_the_same_seed(prior, estimator):
    loc, log_sigma2 = (tensor.clone().requires_grad_() for tensor in (LOC, LOG_SIGMA2))
    model, guide = program(prior, loc, log_sigma2)
    results = []
    for elbo, wrapped in ((TraceMeanField_ELBO(), ESTIMATORS[estimator](guide)), (vd.TraceVD_ELBO(estimator), guide)):
        pyro.set_rng_seed(3)
        loss = elbo.differentiable_loss(model, wrapped, X, Y)
        results.append((loss, *torch.autograd.grad(loss, (loc, log_sigma2))))
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(stock, ours, rtol=1e-12, atol=0)


def test_handler_without_a_function_is_a_context_manager():
    model, guide = program()
    with vd.lrt():
        random = guide(X)
    assert isinstance(random, vd.RandomWeight) and random.site == "w" and isinstance(guide(X), Tensor)
    assert type(guide(X)) is Tensor
    assert torch.equal(random.loc, LOC) and torch.allclose(random.variance, LOG_SIGMA2.exp())
    assert type(vd.lrt(guide)(X)) is vd.RandomWeight


def test_wrong_arguments_are_errors_that_say_what_to_write():
    with pytest.raises(ValueError, match="estimator: expected one of 'local', 'shared', .*, got 'lrt'"):
        vd.TraceVD_ELBO("lrt")
    with pytest.raises(ValueError, match="reuse: expected one of 'error', 'independent', 'shared', got 'yes'"):
        vd.lrt(reuse="yes")
    with pytest.raises(TypeError, match=r"shared_sites: expected a list of site names, got 'w'; write \['w'\]"):
        vd.lrt(shared_sites="w")


def test_sites_that_are_no_free_random_weight_are_left_alone():
    def guide():
        weight = vd.DropoutNormal(LOC, log_sigma2=LOG_SIGMA2).to_event(2)
        return {
            "auxiliary": pyro.sample("auxiliary", weight, infer={"is_auxiliary": True}),
            "observed": pyro.sample("observed", weight, obs=LOC),
            "conditioned": pyro.sample("conditioned", weight),
            "normal": pyro.sample("normal", dist.Normal(LOC, 1.0).to_event(2)),
            "shared": pyro.sample("shared", weight),
            "free": pyro.sample("free", weight),
        }

    values = vd.lrt(poutine.condition(guide, {"conditioned": LOC}), shared_sites=["shared"])()
    assert [name for name, value in values.items() if isinstance(value, vd.RandomWeight)] == ["free"]
    assert values["observed"] is LOC and values["conditioned"] is LOC
    trace = poutine.trace(guide).get_trace()
    replayed = vd.lrt(poutine.replay(guide, trace))()
    assert all(value is trace.nodes[name]["value"] for name, value in replayed.items())


def test_second_use_in_a_model_raises_and_a_shared_site_is_one_coherent_draw():
    def model(x):
        weight = pyro.sample("w", dist.Normal(torch.zeros(3, 3).double(), 1.0).to_event(2))
        difference = F.linear(x, weight) - x @ weight.T
        pyro.sample("y", dist.Normal(difference, 1.0).to_event(2), obs=torch.zeros(6, 3).double())
        return difference

    _, guide = program()
    with pytest.raises(ValueError, match=r"site 'w'.*second one in matmul.*shared_sites=\['w'\]"):
        vd.TraceVD_ELBO().loss(model, guide, X)
    for options in ({"shared_sites": ["w"]}, {"shared_sites": ("w",)}):
        trace = poutine.trace(vd.lrt(guide, **options)).get_trace(X)
        torch.testing.assert_close(poutine.replay(model, trace)(X), torch.zeros(6, 3).double(), rtol=0, atol=1e-12)
        vd.TraceVD_ELBO(**options).loss(model, guide, X)
    vd.TraceVD_ELBO(reuse="independent").loss(model, guide, X)
    vd.TraceVD_ELBO("shared").loss(model, guide, X)


def test_local_step_draws_no_weight_and_evaluates_no_log_prob_of_one(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a weight was drawn, or its log_prob evaluated")

    for method in ("rsample", "sample", "log_prob"):
        monkeypatch.setattr(vd.DropoutNormal, method, forbidden)
    monkeypatch.setattr(vd.ImproperLogUniform, "log_prob", forbidden)
    model, guide = program(PRIORS["log-uniform"])
    assert vd.TraceVD_ELBO("local").loss(model, guide, X, Y) > 0
    with pytest.raises(AssertionError, match="a weight was drawn"):
        vd.TraceVD_ELBO("shared").loss(model, guide, X, Y)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "shared"])
def test_loss_and_gradients_can_be_traced_below_the_handlers(prior, estimator):
    """No Python that depends on data: the whole step becomes one graph of tensor operations."""
    pyro.enable_validation(False)

    def step(x: Tensor, y: Tensor, loc: Tensor, log_sigma2: Tensor):
        loss = vd.TraceVD_ELBO(estimator).differentiable_loss(*program(prior, loc, log_sigma2), x, y)
        return loss, *torch.autograd.grad(loss, (loc, log_sigma2))

    arguments = (X, Y, LOC.clone().requires_grad_(), LOG_SIGMA2.clone().requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own tracer
        graph = make_fx(step, tracing_mode="fake")(*arguments)
    results = []
    for run in (graph, step):
        pyro.set_rng_seed(5)
        results.append(run(*arguments))
    for traced, eager in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-10, atol=1e-12)


def test_nearly_equal_inputs_move_together_under_weight_draws_alone():
    """Correlation over draws of the outputs at x and x + 1e-3: 1 in weight space, 0 under local sampling."""
    model, guide = program(loc=0.0 * LOC)
    x = torch.stack([X[0], X[0] + 1e-3])

    def standardised(run) -> Tensor:
        outputs = torch.stack([F.linear(x, run(x)) for _ in range(1000)])
        return outputs / (x.square() @ LOG_SIGMA2.exp()).sqrt()

    coherent, local = standardised(guide), standardised(vd.lrt(guide))
    correlation = (coherent[:, 0] * coherent[:, 1]).mean(0) / coherent.square().mean((0, 1))
    assert (correlation > 0.999).all()
    assert_mean_close(local[:, 0] * local[:, 1], torch.zeros(3).double())


def test_prior_draws_inside_the_handler_never_get_the_distribution_of_a_weight():
    """A thousand steps with new tensors of one shape: nothing is remembered by the address of a tensor."""
    x = torch.randn(2, 3).double()
    stale, messenger = torch.full((3, 3), -60.0).double(), vd.lrt()
    for step in range(1000):
        loc = torch.full((3, 3), float(step)).double()
        model, guide = program(loc=loc, log_sigma2=stale if step % 2 else LOG_SIGMA2.clone())
        with messenger:
            prior_draw = pyro.sample("prior", dist.Normal(torch.zeros(3, 3).double(), 1.0).to_event(2))
            y = F.linear(x, guide(x))
            assert type(prior_draw) is Tensor and torch.equal(F.linear(x, prior_draw), x @ prior_draw.T)
        exact = torch.allclose(y, x @ loc.T, rtol=0, atol=1e-9)
        assert exact == bool(step % 2)
        with messenger:
            mean = poutine.trace(model).get_trace(x).nodes["w"]["value"]
        assert type(mean) is Tensor


def test_model_run_unconditioned_between_guide_and_replay_changes_nothing():
    model, guide = program()
    trace = poutine.trace(vd.lrt(guide)).get_trace(X)
    model(X)
    run = poutine.trace(poutine.replay(model, trace)).get_trace(X)
    assert run.nodes["w"]["value"] is trace.nodes["w"]["value"]
    rows = run.nodes["y"]["fn"].base_dist.loc
    assert len(rows.unique()) == rows.numel()


def test_warning_of_an_operation_without_a_rule_comes_once_for_all_steps():
    _, guide = program()

    def model(x):
        weight = pyro.sample("w", dist.Normal(torch.zeros(3, 3).double(), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x @ weight.exp(), 1.0).to_event(2), obs=torch.zeros(6, 3).double())

    elbo = vd.TraceVD_ELBO()
    with pytest.warns(UserWarning, match="site 'w'.*got exp;") as caught:
        for _ in range(3):
            elbo.loss(model, guide, X)
    assert len(caught) == 1
    with pytest.raises(ValueError, match="site 'w'.*got exp;"):
        vd.TraceVD_ELBO(strict=True).loss(model, guide, X)
    trace = poutine.trace(vd.lrt(guide, strict=True)).get_trace(X)
    with pytest.raises(ValueError, match="site 'w'.*got exp;"):
        poutine.replay(model, trace)(X)


def test_estimator_names_its_form_on_the_weight():
    _, guide = program()
    for name, handler in ESTIMATORS.items():
        assert handler(guide)(X).state.estimator == name
