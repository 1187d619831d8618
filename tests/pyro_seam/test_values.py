"""Values and names that are looked at where they are used: masks with infinities, labels, shared sites, checkpoints."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

ADAM = functools.partial(torch.optim.Adam, lr=0.01)


class Transformer:
    """An encoder layer whose causal mask is an argument of the model: infinite, or truth values."""

    def __init__(self):
        pyro.set_rng_seed(0)
        net = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

        def model(x, y=None, mask=None):
            mean = bnn(x, src_mask=mask)
            with vd.data_plate(2, len(x)):
                return pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=y)

        self.model, self.x, self.y = model, torch.randn(2, 4, 8), torch.randn(2, 4, 8)
        self.infinite = nn.Transformer.generate_square_subsequent_mask(4)
        self.guide = AutoSparseVD(model)
        self.guide(self.x, self.y)


@pytest.mark.parametrize("step", ["svi", "module", "eager compiled", "loss_and_grads"])
def test_a_mask_of_infinities_trains_as_one_of_truth_values(step):
    results = []
    for infinite in (False, True):
        pyro.clear_param_store()
        one = Transformer()
        mask = one.infinite if infinite else one.infinite < 0
        elbo = vd.TraceVD_ELBO()
        pyro.set_rng_seed(1)
        if step == "svi":
            pyro.infer.SVI(one.model, one.guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(one.x, one.y, mask=mask)
        elif step == "eager compiled":
            vd.CompiledSVI(one.model, one.guide, ADAM, elbo).step(one.x, one.y, mask=mask)
        else:
            loss = elbo(one.model, one.guide)
            optim = torch.optim.Adam(loss.parameters(), lr=0.01)
            if step == "module":
                loss(one.x, one.y, mask=mask).backward()
            else:
                elbo.loss_and_grads(one.model, one.guide, one.x, one.y, mask=mask)
            optim.step()
        results.append([value.detach().clone() for value in one.guide.state_dict().values()])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


def test_a_nan_that_nothing_depends_on_is_no_fault():
    """An example that a mask takes out of the likelihood, and out of the net."""
    bnn = vd.BayesianModule(nn.Linear(3, 1), vd.ImproperLogUniform())

    def model(x, y, keep):
        mean = bnn(torch.where(keep[:, None], x, 0.0)).squeeze(-1)
        with vd.data_plate(len(x), len(x)), pyro.poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(mean, 1.0, validate_args=False), obs=torch.where(keep, y, 0.0))

    guide = AutoSparseVD(model)
    x, y, keep = torch.ones(4, 3), torch.zeros(4), torch.tensor([True, True, False, True])
    guide(x, y, keep)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO())
    pyro.set_rng_seed(1)
    expected = svi.evaluate_loss(x, y, keep)
    x[2], y[2] = math.nan, math.inf
    pyro.set_rng_seed(1)
    assert svi.evaluate_loss(x, y, keep) == pytest.approx(expected)
    svi.step(x, y, keep)
    assert all(value.isfinite().all() for value in guide.state_dict().values())


@pytest.mark.parametrize("trainer", ["svi", "module", "module, seen"])
def test_a_finite_loss_whose_gradient_is_not_is_refused_and_changes_nothing(trainer):
    """tanh of infinity is 1, and its slope times the input is no number."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform(), where="2.weight")

    def model(x, y):
        mean = bnn(x)
        with vd.data_plate(len(x), len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    guide, x, y = AutoSparseVD(model), torch.tensor([[math.inf], [1.0]]), torch.zeros(2, 1)
    guide(x, y)
    elbo = vd.TraceVD_ELBO()
    assert math.isfinite(elbo.loss(model, guide, x, y))
    svi, loss = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo), elbo(model, guide)
    if trainer == "module, seen":
        loss(torch.ones(2, 1), y)
    before = [value.detach().clone() for value in (*net.parameters(), *guide.parameters())]
    words = "expected a finite gradient, got one that is not: data argument 0 holds 1 NaN or infinite of 2 values"
    with pytest.raises(ValueError, match=words):
        svi.step(x, y) if trainer == "svi" else loss(x, y)
    after = (*net.parameters(), *guide.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(value.grad is None or not value.grad.any() for value in after)
    svi.step(torch.ones(2, 1), y)


LIKELIHOODS = {
    "categorical": (lambda m: dist.Categorical(logits=m), lambda y: y[:, 0].round().abs().long() % 2),
    "normal": (lambda m: dist.Normal(m[:, 0], 1.0), lambda y: y[:, 0]),
    "events": (lambda m: dist.Normal(m, 1.0).to_event(1), lambda y: y),
    "column events": (lambda m: dist.Normal(m[:, :1], 1.0).to_event(1), lambda y: y[:, :1]),
    "bernoulli": (lambda m: dist.Bernoulli(logits=m).to_event(1), lambda y: (y > 0).float()),
    "multivariate": (lambda m: dist.MultivariateNormal(m, torch.eye(2)), lambda y: y),
    "poisson": (lambda m: dist.Poisson(m[:, 0].exp()), lambda y: y[:, 0].round().abs()),
}
RESHAPED = {
    "column": lambda y: y.reshape(len(y), -1, 1).squeeze(1) if y.dim() == 1 else y[:, :, None],
    "one example": lambda y: y[:1],
    "one value": lambda y: y.reshape(-1)[0],
    "flat": lambda y: y.reshape(len(y), -1)[:, 0],
    "one column": lambda y: y.reshape(len(y), -1)[:, :1],
}


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("shape", RESHAPED)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_labels_are_never_broadcast(likelihood, shape, validation):
    make, labels = LIKELIHOODS[likelihood]
    bnn = vd.BayesianModule(nn.Linear(3, 2), vd.ImproperLogUniform())

    def model(x, y):
        outputs = bnn(x)
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", make(outputs), obs=y)

    guide, x, y = AutoSparseVD(model), torch.randn(6, 3), labels(torch.randn(6, 2))
    guide(x, y)
    elbo, wrong = vd.TraceVD_ELBO(), RESHAPED[shape](y)
    assert math.isfinite(elbo.loss(model, guide, x, y))
    pyro.enable_validation(validation)
    if wrong.shape == y.shape:
        assert math.isfinite(elbo.loss(model, guide, x, wrong))
        return
    with pytest.raises(ValueError, match=r"site 'y': expected an observed value of shape .* which would be broadcast"):
        elbo.loss(model, guide, x, wrong)


def test_what_is_broadcast_on_purpose_is_not_refused():
    """Particles that are vectorised, factors, values that the model computes, and a distribution of one for all."""

    def model(x, y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with vd.data_plate(60, len(x)):
            total = pyro.deterministic("total", scale * torch.ones(()))
            pyro.factor("penalty", torch.zeros(len(x)) - total.abs())
            pyro.sample("y", dist.Normal(scale, 1.0), obs=y)

    def guide(x, y):
        pyro.sample("scale", dist.LogNormal(0.0, 0.1))

    y = torch.randn(6)
    elbo = vd.TraceVD_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1, analytic_only=False)
    assert math.isfinite(elbo.loss(model, guide, torch.ones(6, 3), y))
    assert math.isfinite(vd.TraceVD_ELBO(analytic_only=False).loss(model, guide, torch.ones(6, 3), y))


def test_the_first_of_several_faults_that_is_named_is_a_nan():
    pyro.enable_validation(False)
    one = Transformer()
    y = one.y.clone()
    y[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="data argument 1 holds 1 NaN or infinite of 64 values"):
        vd.TraceVD_ELBO().loss(one.model, one.guide, one.x, y, mask=one.infinite)


@pytest.mark.parametrize("handler", [vd.lrt, vd.per_example, vd.flipout])
def test_shared_sites_that_the_guide_has_are_drawn_once(handler):
    def guide():
        pyro.sample("w", vd.DropoutNormal(torch.ones(2, 3), log_sigma2=-2.0).to_event(2))
        pyro.sample("v", vd.DropoutNormal(torch.ones(2, 3), log_sigma2=-2.0).to_event(2))

    trace = pyro.poutine.trace(handler(guide, shared_sites=["v"])).get_trace()
    assert isinstance(trace.nodes["w"]["value"], vd.RandomWeight)
    assert not isinstance(trace.nodes["v"]["value"], vd.RandomWeight)
    with pytest.raises(ValueError, match=r"shared_sites: expected names among .* the guide \['w', 'v'\], got"):
        handler(guide, shared_sites=["v", "u"])()
    with pytest.raises(ZeroDivisionError):  # an error of the guide's own comes first
        handler(lambda: 1 / 0, shared_sites=["u"])()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_with_nan_is_refused_and_nothing_is_loaded(value):
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), vd.ImproperLogUniform())
    good = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    bad = {name: tensor + 1 for name, tensor in good.items()}
    bad["net.1.running_var"] = torch.tensor([1.0, value])
    with pytest.raises(ValueError, match="load_state_dict: 'net.1.running_var': expected finite values, got 1"):
        bnn.load_state_dict(bad)
    assert all(torch.equal(tensor, good[name]) for name, tensor in bnn.state_dict().items())
    bnn.load_state_dict({name: tensor + 1 for name, tensor in good.items()})


def test_prediction_of_what_the_model_returns():
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with vd.data_plate(9, len(x)):
            pyro.sample("label", dist.Normal(slope * x, 1.0), obs=y)
        return slope * x

    def guide(x, y=None):
        pyro.sample("slope", dist.Normal(2.0, 0.1))

    draw = functools.partial(vd.posterior_predictive, model, guide, torch.arange(5.0), num_samples=3)
    both = draw(return_sites=["slope", "_RETURN"])
    torch.testing.assert_close(both["_RETURN"], both["slope"][:, None] * torch.arange(5.0))
    pieces = draw(return_sites=["slope", "_RETURN"], batch_size=2)
    torch.testing.assert_close(pieces["_RETURN"], pieces["slope"][:, None] * torch.arange(5.0))
    assert set(draw(return_sites="label")) == {"label"} and set(draw()) == {"label"}
    with pytest.raises(TypeError, match="expected a model that returns a tensor for '_RETURN', got None"):
        vd.posterior_predictive(lambda x: None, lambda x: None, torch.ones(2), num_samples=1, return_sites="_RETURN")
