"""Labels whose support has no map from the real line: a guide sees its model without them, and leaves them alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
LIKELIHOODS = {
    "counts of classes": lambda output: dist.Multinomial(5, logits=output),
    "one-hot classes": lambda output: dist.OneHotCategorical(logits=output),
    "overdispersed counts": lambda output: dist.DirichletMultinomial(output.exp(), total_count=torch.tensor(5)),
    "a mixture of vectors": lambda output: dist.MixtureSameFamily(
        dist.Categorical(logits=output), dist.Normal(torch.zeros(6, 3, 2), 1.0).to_event(1)
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_guide_sees_its_model_without_them(name):
    bnn = vd.BayesianModule(nn.Linear(3, 3), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        output = bnn(x)
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", LIKELIHOODS[name](output), obs=y)

    def loss(guide, y):
        torch.manual_seed(0)
        return vd.TraceVD_ELBO().loss(model, guide, X, y)

    guide = AutoMeanField(model)
    draws = vd.posterior_predictive(model, guide, X, num_samples=2)
    assert list(draws) == ["y"] and list(guide(X)) == ["net.weight"]
    assert loss(guide, draws["y"][0]) == loss(AutoMeanField(model), draws["y"][0])


def test_a_latent_site_without_a_map_from_the_real_line_is_named():
    bnn = vd.BayesianModule(nn.Linear(3, 1), dist.Normal(0.0, 1.0))

    def model(x, y):
        parts = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
        shift = pyro.sample("shift", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
        pyro.sample("y", dist.Normal(bnn(x) + shift, 1.0).to_event(2), obs=y)

    with pytest.raises(ValueError, match="site 'shift': expected a latent site whose .* got a MixtureSameFamily"):
        AutoMeanField(model)(X, X[:, :1])
