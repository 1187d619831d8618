"""Pyro's own demands on its TraceMeanField_ELBO, made of TraceVD_ELBO: gradients, shapes, order, convergence."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing import fakes
from pyro.infer import SVI
from torch.distributions import constraints

from pyro_vd import TraceVD_ELBO


def ours(**kwargs) -> TraceVD_ELBO:
    return TraceVD_ELBO(analytic_only=False, **kwargs)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("batches", [[[0, 1]], [[0], [1]]])
def test_gradient_of_a_subsampled_normal_model(batches, scale):
    """As in Pyro's test_gradient.py: the expected gradients are known."""
    data = torch.tensor([-0.5, 2.0])

    def model(batch):
        with pyro.plate("data", 2, len(batch), batch) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide(batch):
        scale = pyro.param("scale", torch.tensor([1.0]))
        with pyro.plate("data", 2, len(batch), batch):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2), event_dim=0), scale))

    particles = 40000
    loss = ours(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    for batch in batches:
        loss.loss_and_grads(poutine.scale(model, scale=scale), poutine.scale(guide, scale=scale), torch.tensor(batch))
    gradients = {name: p.grad / len(batches) for name, p in pyro.get_param_store().named_parameters()}
    # One draw's gradient of loc is z - x + const with variance 1, of scale a sum over data of (z - x) e, at most 5 each
    bound = 5 * scale * (2 * 6 * len(batches) / particles) ** 0.5
    torch.testing.assert_close(gradients["loc"], scale * torch.tensor([0.5, -2.0]), rtol=0, atol=bound)
    torch.testing.assert_close(gradients["scale"], scale * torch.tensor([2.0]), rtol=0, atol=bound)


def test_a_guide_that_cannot_be_reparameterised_is_refused():
    def model():
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(0.0))

    def guide():
        pyro.sample("z", fakes.NonreparameterizedNormal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(NotImplementedError, match="site 'z': expected a reparameterised guide distribution, got"):
        ours().loss_and_grads(model, guide)


def test_sites_in_another_order_are_warned_of():
    def model():
        pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0))

    def guide():
        y = pyro.sample("y", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("x", dist.Normal(y, 1.0))

    with pytest.warns(UserWarning, match="mean field restriction"):
        ours().loss(model, guide)


def test_a_mask_of_another_shape_is_an_error():
    def model():
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        with pyro.plate("data", 3):
            pyro.sample(
                "y", dist.MultivariateNormal(z, torch.eye(2)), obs=torch.ones(3, 2), obs_mask=torch.ones(3, 2) > 0
            )

    def guide():
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        with pyro.plate("data", 3):
            pyro.sample("y_unobserved", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))

    with pytest.raises(ValueError, match="Invalid obs_mask shape"):
        ours().loss(model, guide)


def test_a_batch_that_no_plate_declares_is_an_error():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([4]), obs=torch.ones(4))

    def guide():
        pyro.sample("z", dist.Normal(0.5, 1.0))

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        ours().loss(model, guide)


def test_normal_normal_is_solved():
    """As in Pyro's test_inference.py, analytic KL: SVI finds the conjugate posterior."""
    data = torch.tensor([[-0.1, 0.3], [0.0, 0.4], [0.2, 0.5], [0.1, 0.7]])
    precision, prior_precision, prior_loc = torch.tensor([6.0, 4.0]), torch.tensor([0.1, 0.1]), torch.tensor([0.0, 0.5])
    posterior_precision = prior_precision + 4 * precision
    posterior_loc = (data.sum(0) * precision + prior_loc * prior_precision) / posterior_precision

    def model():
        z = pyro.sample("z", dist.Normal(prior_loc, prior_precision**-0.5).to_event(1))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(z, precision**-0.5).to_event(1), obs=data)

    def guide():
        loc = pyro.param("loc", posterior_loc + 0.3)
        scale = pyro.param("scale", posterior_precision**-0.5 * 1.4, constraint=constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.985})
    svi = SVI(model, guide, optim, ours(num_particles=20, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(300):
        svi.step()
        optim.step()
    # Adam's steps at the end are below 0.05 * 0.985**300 = 5e-4.
    torch.testing.assert_close(pyro.param("loc").detach(), posterior_loc, rtol=0, atol=0.02)
    torch.testing.assert_close(pyro.param("scale").detach(), posterior_precision**-0.5, rtol=0, atol=0.02)
