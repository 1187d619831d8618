"""Every net of examples/any_network.py with structured zeros shrinks to equal outputs; nets of a guide, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.shrink_nets import networks
from pyro_vd.guides import AutoGroupSparse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:shrink. expected a live unit", "ignore:.torch.jit.script:DeprecationWarning"),
]

WORDS, ROWS = ("embedding_bag", "bert", "gpt2"), ("lstm", "packed", "masked")
WHOLE = ("gpt2", "gcn")  # whose units meet functions without a rule: LayerNorm and a split, sums over edges


def example(name, batch):
    if name in WORDS:
        return torch.randint(0, 200, (batch, 12))
    return torch.randn(batch, 8, 8) if name in ROWS else torch.randn(batch, 1, 8, 8)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_nets_with_random_masks(name):
    """Whole rows and columns, and single weights beside them."""
    gone = []
    for seed, share in enumerate((0.3, 0.7)):
        torch.manual_seed(seed)
        net = networks.NETWORKS[name]().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() < 2:
                    parameter.normal_(std=0.3)
                    continue
                keep = torch.rand(parameter.shape) > share / 3
                for dim in (0, 1):
                    shape = [1] * parameter.dim()
                    shape[dim] = -1
                    keep &= torch.rand(parameter.shape[dim]).reshape(shape) > share
                keep |= torch.rand(parameter.shape) > 0.999  # so that no layer dies as a whole
                parameter *= keep
        smaller = vd.shrink(net, example(name, 3))
        x = example(name, 5)
        torch.testing.assert_close(smaller(x), net(x), rtol=1e-5, atol=1e-5)
        sizes = [sum(p.numel() for p in one.parameters()) for one in (smaller, net)]
        gone.append(1 - sizes[0] / sizes[1])
    assert max(gone) > 0.05 or name in WHOLE, gone


@pytest.mark.parametrize("name", ["resnet", "vit", "unet"])
def test_shapes_shrink_after_a_group_sparse_guide(name):
    """Half of the units of every layer have more noise than signal, as training with group sparsity leaves them."""
    torch.manual_seed(0)
    bnn = vd.BayesianModule(networks.NETWORKS[name](), vd.ImproperLogUniform())
    guide = AutoGroupSparse(bnn)
    with torch.no_grad():
        for parameter_name, parameter in guide.named_parameters():
            if "unit_log_sigma2s" in parameter_name:
                parameter[: len(parameter) // 2] = 8.0
    pruned = vd.prune(bnn, guide).eval()
    smaller, x = vd.shrink(pruned, example(name, 2)), example(name, 5)
    torch.testing.assert_close(smaller(x), pruned(x), rtol=1e-5, atol=1e-5)
    layers = [
        [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))] for net in (pruned, smaller)
    ]
    assert any(2 * ours.weight.numel() <= theirs.weight.numel() for theirs, ours in zip(*layers, strict=True))
