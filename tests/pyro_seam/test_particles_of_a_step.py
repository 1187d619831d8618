"""The particles of a step by ``SVI`` are evaluated one after the other, in the memory of one. All checks are exact."""

from __future__ import annotations

import copy
import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD


class Kept:
    """What autograd keeps of one tensor for a backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def program():
    """A model with a random scale of its own, its guide, data, what its runs have made, and how much of it is alive."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    made: list[weakref.ref] = []
    alive: list[int] = []
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y=None):
        alive.append(sum(one() is not None for one in made))
        scale = pyro.sample("scale", dist.Gamma(x.new_tensor(2.0), 2.0))
        logits = bnn(x)
        made.extend(weakref.ref(tensor) for tensor in (logits, scale))
        with vd.data_plate(50, len(x)):
            return pyro.sample("y", dist.Categorical(logits=scale * logits), obs=y)

    guide = AutoSparseVD(model)
    data = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    guide(*data)
    made.clear()
    alive.clear()
    return model, guide, data, (made, alive)


def parameters():
    return dict(pyro.get_param_store().named_parameters())


@pytest.mark.parametrize("estimator", ["local", "shared"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_loss_and_gradient_are_those_of_all_at_once_with_the_same_noise(estimator, kl_weight):
    model, guide, data, _ = program()
    elbo = vd.TraceVD_ELBO(estimator, num_particles=5, kl_weight=kl_weight)
    buffers = copy.deepcopy(model.__closure__[1].cell_contents.state_dict())
    pyro.set_rng_seed(1)
    whole = elbo.differentiable_loss(model, guide, *data)
    named = parameters()
    expected = torch.autograd.grad(whole, list(named.values()), allow_unused=True)
    bnn = model.__closure__[1].cell_contents
    updated = {name: value.clone() for name, value in bnn.state_dict().items() if "running" in name}
    bnn.load_state_dict(buffers)
    old = {name: torch.full_like(value, 3.0) for name, value in named.items()}
    for name, value in named.items():
        value.grad = old[name].clone()
    pyro.set_rng_seed(1)
    assert elbo.loss_and_grads(model, guide, *data) == whole.item()
    for (name, value), gradient in zip(named.items(), expected, strict=True):
        assert gradient is not None
        torch.testing.assert_close(value.grad - old[name], gradient, rtol=1e-9, atol=1e-9)
    for name, value in updated.items():
        torch.testing.assert_close(bnn.state_dict()[name], value, rtol=1e-12, atol=0)
    assert elbo.num_particles == 5


def test_the_graph_of_one_particle_is_gone_when_the_next_begins():
    model, guide, data, (made, alive) = program()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO(num_particles=4))

    def keep(tensor):
        kept = Kept(tensor)
        made.append(weakref.ref(kept))
        return kept

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            svi.step(*data)
    finally:
        gc.enable()
    of_the_guide = alive[0]  # before the first particle's model begins
    assert alive == [of_the_guide] * 4 and len(made) > 4 * (of_the_guide + 20)


@pytest.mark.parametrize("failing", [2, 3])
def test_a_particle_that_fails_adds_no_gradient_of_those_before_it(failing):
    model, guide, data, _ = program()
    bnn = model.__closure__[1].cell_contents
    calls = []

    def sometimes(x, y=None):
        calls.append(None)
        if len(calls) == failing:
            raise RuntimeError("no more")
        return model(x, y)

    named = parameters()
    for value in named.values():
        value.grad = torch.ones_like(value)
    unset = next(iter(named.values()))
    unset.grad = None
    before = copy.deepcopy(bnn.state_dict())
    with pytest.raises(RuntimeError, match="no more"):
        vd.TraceVD_ELBO(num_particles=3).loss_and_grads(sometimes, guide, *data)
    assert len(calls) == failing and unset.grad is None
    assert all(torch.equal(value.grad, torch.ones_like(value)) for value in named.values() if value is not unset)
    assert all(torch.equal(value, before[name]) for name, value in bnn.state_dict().items())


def test_a_bad_label_is_named_whichever_particle_meets_it():
    model, guide, (x, y), _ = program()
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="data argument 0 holds 1 NaN"):
        vd.TraceVD_ELBO(num_particles=3).loss_and_grads(model, guide, x, y)


def test_the_recipe_of_the_loss_module_has_the_gradient_of_all_particles():
    """``(loss(x, y) / n).backward()`` n times, as the guide to memory says."""
    model, guide, data, _ = program()
    gradients = []
    for number, times in ((4, 1), (1, 4)):
        loss = vd.TraceVD_ELBO(num_particles=number)(model, guide)
        loss.zero_grad()
        pyro.set_rng_seed(1)
        for _ in range(times):
            (loss(*data) / times).backward()
        gradients.append({name: parameter.grad for name, parameter in loss.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-9)
