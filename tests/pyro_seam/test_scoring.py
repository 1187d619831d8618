"""log_probs of random weights under Pyro's own ELBOs: evaluated by those that use them, and by no other."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.nn import functional as F

import pyro_vd as vd
from pyro_vd.scoring import Deferred

LOC = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.3, -0.7]], dtype=torch.float64)
LOG_SIGMA2 = torch.tensor([[-2.0, -1.0, 0.5], [-3.0, 0.0, -4.0]], dtype=torch.float64)
LOG_UNIFORM = vd.ImproperLogUniform().expand([2, 3]).to_event(2)
STUDENT = dist.StudentT(5.0, torch.zeros(2, 3, dtype=torch.float64), 1.0).to_event(2)


@pytest.fixture
def parameters():
    return LOC.clone().requires_grad_(), LOG_SIGMA2.clone().requires_grad_()


@pytest.fixture
def draws(monkeypatch):
    """The draws of weights, as they come."""
    seen: list[Tensor] = []
    rsample = vd.DropoutNormal.rsample

    def noted(self, sample_shape=()):
        seen.append(rsample(self, sample_shape))
        return seen[-1]

    monkeypatch.setattr(vd.DropoutNormal, "rsample", noted)
    return seen


def program(parameters, prior, x: Tensor):
    """A model and a guide under ``lrt``; with x = 0 the data term is a constant."""
    loc, log_sigma2 = parameters

    def model():
        output = F.linear(x, pyro.sample("w", prior))
        pyro.sample("y", dist.Normal(output, 1.0).to_event(2), obs=torch.zeros_like(output))

    def guide():
        pyro.sample("w", vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(2))

    return model, vd.lrt(guide)


@pytest.mark.parametrize("validation", [False, True])
def test_mean_field_elbo_draws_a_weight_only_to_look_for_nan(parameters, draws, validation):
    model, guide = program(parameters, LOG_UNIFORM, torch.ones(4, 3, dtype=torch.float64))
    with pyro.validation_enabled(validation):
        TraceMeanField_ELBO().loss_and_grads(model, guide)
    assert len(draws) == validation


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    ("elbo", "prior"),
    [(Trace_ELBO, LOG_UNIFORM), (Trace_ELBO, STUDENT), (TraceMeanField_ELBO, STUDENT)],  # the last has no KL rule
    ids=["Trace, log-uniform", "Trace, StudentT", "TraceMeanField, StudentT"],
)
def test_an_elbo_that_uses_log_probs_has_them_of_one_draw_with_their_gradient(parameters, draws, elbo, prior, scale):
    x = torch.zeros(4, 3, dtype=torch.float64)
    model, guide = (pyro.poutine.scale(fn, scale) for fn in program(parameters, prior, x))
    with pyro.validation_enabled(False):
        loss = elbo().differentiable_loss(model, guide)
    (draw,) = draws
    q = dist.Normal(parameters[0], (0.5 * parameters[1]).exp()).to_event(2)
    data = -dist.Normal(torch.zeros(4, 2, dtype=torch.float64), 1.0).to_event(2).log_prob(torch.zeros_like(x[:, :2]))
    expected = scale * (data + q.log_prob(draw) - prior.log_prob(draw))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)


def test_a_log_prob_inside_the_model_is_that_of_the_draw_the_model_uses(parameters):
    def model():
        weight = pyro.sample("w", LOG_UNIFORM)
        score = vd.ImproperLogUniform().log_prob(weight)
        torch.testing.assert_close(score, -weight.materialize().abs().log())
        pyro.factor("score", score.sum())

    _, guide = program(parameters, LOG_UNIFORM, torch.ones(4, 3, dtype=torch.float64))
    with pytest.warns(UserWarning, match="the weight is drawn once"):
        assert torch.isfinite(Trace_ELBO().differentiable_loss(model, guide))


def test_deferred_has_a_shape_at_once_and_a_value_when_asked():
    calls = []

    def compute() -> Tensor:
        calls.append(1)
        return 1.0 * parameter

    parameter = torch.arange(6.0).reshape(2, 3).requires_grad_()
    deferred = Deferred(compute, (2, 3), torch.float32, torch.device("cpu"))
    rows = (deferred * torch.tensor(2.0)).reshape((2, -1)).sum(-1)
    assert (rows.shape, rows.dtype, deferred.dim(), type(rows), calls) == ((2,), torch.float32, 2, Deferred, [])
    with torch.no_grad():
        torch.testing.assert_close(rows + 1.0, torch.tensor([7.0, 25.0]))
    assert deferred.reshape((-1,)).shape == (6,) and (2.0 * deferred).shape == (2, 3)
    others = (deferred.reshape((3, -1)), deferred.reshape(3, 2), deferred.sum(0), deferred.sum(-1, keepdim=True))
    for other in (*others, deferred * torch.ones(2, 3)):
        assert type(other) is Tensor  # none of those that Pyro asks for: evaluated
    assert rows.requires_grad and deferred.sum().item() == 15.0 and "15." in repr(deferred.sum())
    rows.sum().backward()
    assert parameter.grad is not None and (parameter.grad == 2).all()
    assert calls == [1]


def test_the_last_dimensions_of_a_batch_of_weights_are_one():
    deferred = Deferred(lambda: torch.ones(2, 3, 4), torch.Size((2, 3, 4)), torch.float32, torch.device("cpu"))
    rows = deferred.reshape((2, -1))
    assert type(rows) is Deferred and rows.shape == rows.value.shape == (2, 12)


def test_deferred_below_torch_functions_is_an_error():
    deferred = Deferred(lambda: torch.ones(2), (2,), torch.float32, torch.device("cpu"))
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(TypeError, match=r"got aten.*\.value"):
        torch.add(deferred, 1.0)
