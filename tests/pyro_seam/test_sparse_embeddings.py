"""Embeddings with sparse=True: loss and gradient are those with sparse=False, dense as those of the KL."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd import guides

TOKENS = torch.tensor([[1, 0, 0], [2, 3, 0]])
FAMILIES = {
    "AutoMeanField": {},
    "AutoLowRank": {"rank": 2},
    "AutoGroupSparse": {},
    "AutoConcreteDropout": {},
}
FLIPOUT = ("AutoMeanField",)  # the other families have no form for it


def gradient(layer, family, estimator, **options):
    pyro.set_rng_seed(0)
    net = layer(5, 3, **options)
    prior = vd.ImproperLogUniform() if family == "AutoGroupSparse" else dist.Normal(0.0, 1.0)
    bnn = vd.BayesianModule(net, prior)

    def model(tokens):
        mean = bnn(tokens).flatten(1)
        with vd.data_plate(20, len(tokens)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones_like(mean))

    guide = getattr(guides, family)(model, **FAMILIES[family])
    torch.manual_seed(1)
    loss = vd.TraceVD_ELBO(estimator)(model, guide)(TOKENS)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in guide.parameters())]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of PyTorch: bags of a low rank family
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("estimator", ["local", "shared", "per_example", "flipout"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_a_dense_embedding(family, estimator, layer, padding_idx):
    if estimator == "flipout" and family not in FLIPOUT:
        pytest.skip("no form for flipout")
    options = {"padding_idx": padding_idx, **({"mode": "sum"} if layer is nn.EmbeddingBag else {})}
    expected = gradient(layer, family, estimator, **options)
    torch.testing.assert_close(gradient(layer, family, estimator, sparse=True, **options), expected)
