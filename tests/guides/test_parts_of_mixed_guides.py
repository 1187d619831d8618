"""What a mixed guide says of what layers keep fixed of its weights; and a guide in the place of its model."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD, mixed_guide


def test_fixed_elements_are_constants_in_the_posteriors_of_a_mixed_guide():
    net = nn.Sequential(nn.Embedding(4, 3, padding_idx=0), prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.5))
    bnn = vd.BayesianModule(net, {"0.*": dist.Normal(0.0, 1.0), "1.*": vd.ImproperLogUniform()})
    parts = AutoMeanField(bnn, where="net.0.*"), AutoSparseVD(bnn, where="net.1.*", init_log_sigma2=-4.0)
    guide = mixed_guide(bnn, *parts)
    with torch.no_grad():  # as weight decay leaves them
        for parameter in guide.parameters():
            parameter.mul_(0.5)
    embedding, masked = guide.posteriors().values()
    assert torch.equal(embedding.mean[0], net[0].weight[0])
    assert not embedding.variance[0].any() and bool(embedding.variance[1:].all())
    dropped = net[1].weight_mask == 0
    assert not masked.variance[dropped].any() and bool(masked.variance[~dropped].all())
    assert not vd.keep_masks(guide)["net.1.weight_orig"][dropped].any()
    alone = parts[1].log_alpha("net.1.weight_orig")
    assert torch.equal(guide.log_alpha("net.1.weight_orig"), alone) and bool(torch.isinf(alone[dropped]).all())


def test_a_guide_in_the_place_of_the_model():
    bnn = vd.BayesianModule(nn.Linear(3, 2), vd.ImproperLogUniform())
    parts = AutoSparseVD(bnn, where="net.weight"), AutoMeanField(bnn, where="net.weight")
    with pytest.raises(TypeError, match="after the model, got the guide AutoSparseVD in its place; write mixed_guide"):
        mixed_guide(*parts)
