"""Smaller nets with the same outputs: over random zeros in many nets, and the sizes that must come out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyro_vd as vd
from helpers.shrink_nets import NETS, NONE_GOES, Net, example, networks, three
from pyro_vd.guides import AutoGroupSparse
from pyro_vd.sparsity.heads import FewerHeads


def with_zeros(net, share, seed):
    """Whole rows and columns of the weights are zero, and a bias now and then; buffers are as after training."""
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if "running_var" in name:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=make))
            elif tensor.is_floating_point() and "original" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=make))
            if tensor.dim() > 1:
                for dim in (0, 1):
                    if tensor.shape[dim] > 3:
                        tensor.index_fill_(
                            dim, (torch.rand(tensor.shape[dim], generator=make) < share).nonzero()[:, 0], 0
                        )
            elif name.endswith("bias"):
                tensor[torch.rand(tensor.shape, generator=make) < 0.3] = 0.0
    return net


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


def assert_same(ours, theirs):
    ours, theirs = (list(one.values()) if isinstance(one, dict) else [one] for one in (ours, theirs))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:shrink. expected a live unit")
@pytest.mark.parametrize("name", NETS)
def test_same_outputs_over_random_zeros(name):
    """On examples that it has not seen, too; and over the seeds something goes."""
    gone = 0
    for seed, share in enumerate((0.15, 0.3, 0.3, 0.5, 0.8, 1.0)):
        torch.manual_seed(seed)
        net = with_zeros(NETS[name][0](), share, seed).double().eval()
        smaller = vd.shrink(net, example(name))
        for _ in range(2):
            x = example(name)
            with torch.no_grad():
                assert_same(smaller(x), net(x))
        if x.dim() > 1 and name != "one example":
            assert_same(smaller(x[:1]), net(x[:1]))
        kinds = [nn.MultiheadAttention if type(layer) is FewerHeads else type(layer) for layer in smaller.modules()]
        assert kinds == [type(layer) for layer in net.modules()]
        gone += size(net) - size(smaller)
    assert gone > 0 or name in NONE_GOES


def linear(rows):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def test_a_chain_of_dead_units():
    """A unit that only a dead unit reads is dead; a unit that reads constants only is one."""
    torch.manual_seed(0)
    net = linear(5)
    with torch.no_grad():
        net[4].weight[:, 1] = 0  # unit 1 of the second layer is not read,
        net[2].weight[:, 2] = 0
        net[2].weight[1, 2] = 1.0  # and alone reads unit 2 of the first
        net[0].weight[3] = 0  # unit 3 of the first is constant,
        net[2].weight[4] = 0
        net[2].weight[4, 3] = 1.0  # and all that unit 4 of the second reads
    smaller = vd.shrink(net, torch.randn(1, 4))
    assert [tuple(layer.weight.shape) for layer in smaller[::2]] == [(3, 4), (4, 3), (3, 4)]
    assert [(layer.in_features, layer.out_features) for layer in smaller[::2]] == [(4, 3), (3, 4), (4, 3)]
    constant = F.relu(net[2].bias[4] + F.relu(net[0].bias[3]))
    expected = net[4].bias + constant * net[4].weight[:, 4]
    torch.testing.assert_close(smaller[4].bias, expected)


def test_terms_of_a_sum_go_together():
    """A unit of a sum goes where both terms are dead, stays where one lives; its BatchNorm follows."""
    torch.manual_seed(0)
    net = networks.Residual(4, 4, 1)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), net, nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[2].weight[:, :2] = 0  # the sum is not read at 0 and 1,
        net[1].conv1.weight[:, 0] = 0  # and the first term not at 0, 2
        net[1].conv1.weight[:, 2] = 0
        net[1].conv1.weight[3] = 0
        net[1].norm1.bias[3] = -1.0
    smaller = vd.shrink(net, torch.randn(2, 1, 5, 5))
    assert smaller[0].out_channels == smaller[2].in_channels == smaller[1].conv2.out_channels == 3
    assert (smaller[1].conv1.in_channels, smaller[1].conv1.out_channels, smaller[1].norm1.num_features) == (3, 3, 3)
    assert smaller[1].norm2.running_mean.shape == (3,)


def test_a_constant_under_a_padded_convolution_stays_unless_it_is_zero():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1))
    with torch.no_grad():
        net[0].weight[1:] = 0
        net[0].bias[1:] = torch.tensor([0.5, -0.5])
    smaller = vd.shrink(net, torch.randn(1, 1, 6, 6))
    assert smaller[0].out_channels == 2
    net[2].padding = (0, 0)
    assert vd.shrink(net, torch.randn(1, 1, 6, 6))[0].out_channels == 1


def test_sizes_of_flattened_and_joined_units():
    net = Net(lambda s, x: s.out(torch.cat([s.a(x).flatten(1), s.b(x).flatten(1)], 1)), a=nn.Conv2d(1, 3, 2),
              b=nn.Conv2d(1, 2, 2), out=nn.Linear(20, 2))  # fmt: skip
    with torch.no_grad():
        net.out.weight[:, 4:8] = 0  # unit 1 of the first
        net.out.weight[:, 12:15] = 0  # and most of unit 0 of the second
    smaller = vd.shrink(net, torch.randn(1, 1, 3, 3))
    assert (smaller.a.out_channels, smaller.b.out_channels, smaller.out.in_features) == (2, 2, 16)


@pytest.mark.parametrize(("middle", "size"), [
    (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), 1), (lambda: nn.AvgPool2d(3, 1, padding=1), 2),
    (lambda: nn.AvgPool2d(3, 1, padding=1), 5), (lambda: nn.ZeroPad2d(1), 3),
    (lambda: nn.Conv2d(3, 3, 3, padding=1), 1),
])  # fmt: skip
def test_what_is_constant_on_the_examples_only_is_not(middle, size):
    """Padding reaches all positions of a small image; in a larger one the constant is another at the border."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Sigmoid(), middle(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight[:2] = 0
    smaller = vd.shrink(net, torch.randn(1, 1, size, size))
    x = torch.randn(2, 1, 7, 7)
    torch.testing.assert_close(smaller(x), net(x))


def test_constants_that_meet_an_input_or_a_position():
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)
    net = three(lambda s, x, shift: s.c(torch.sigmoid(s.b(torch.sigmoid(s.a(x)) + shift))), *layers)
    net.position = nn.Parameter(torch.randn(5, 4))
    with torch.no_grad():
        net.a.weight[:2] = 0
        net.b.weight[0, 2:] = 0
    smaller = vd.shrink(net, (torch.ones(1, 3), torch.ones(1, 4)))
    x, shift = torch.randn(2, 3), torch.randn(2, 4)
    torch.testing.assert_close(smaller(x, shift), net(x, shift))
    net.call = lambda s, x: s.b(torch.sigmoid(s.a(x)) * s.position)
    with torch.no_grad():
        net.b.weight[:, 3] = 0
    smaller = vd.shrink(net, torch.ones(1, 5, 3))
    assert smaller.position.shape == (5, 3) and smaller.a.out_features == 3
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(smaller(x), net(x))


def test_parameters_that_are_used_in_other_ways_stay_whole():
    torch.manual_seed(0)
    net = three(lambda s, x: s.b(F.relu(s.a(x))) + s.a.bias.sum(), nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net.b.weight[:, 0] = 0
        net.a.weight[1] = 0
    smaller, x = vd.shrink(net, torch.randn(2, 3)), torch.randn(2, 3)
    assert smaller.a.out_features == 4
    torch.testing.assert_close(smaller(x), net(x))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_layer_without_a_live_unit(scale):
    net = linear(5)
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.mul_(scale)
    with pytest.warns(UserWarning, match="shrink: expected a live unit in every layer, got none in .*'2.weight'"):
        smaller = vd.shrink(net, torch.randn(2, 4))
    assert [layer.out_features for layer in smaller[::2]] == [1, 1, 3]
    x = torch.randn(3, 4)
    torch.testing.assert_close(smaller(x), net(x))


def test_masked_nets_group_sparse_guides_and_ties():
    torch.manual_seed(0)
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), vd.ImproperLogUniform())
    guide = AutoGroupSparse(bnn)
    x = torch.randn(3, 6)
    guide(x)
    with torch.no_grad():
        guide._read("unit_log_sigma2s", "net.2.weight")[[0, 4, 5]] = 8.0
    for masked in (False, True):
        pruned = vd.prune(bnn, guide, masked=masked)
        smaller = vd.shrink(pruned, x)
        assert (smaller[0].out_features, smaller[2].in_features) == (6, 6)
        assert not torch_prune.is_pruned(smaller) and torch_prune.is_pruned(pruned) == masked
        torch.testing.assert_close(smaller(x), pruned(x))
    net = Net(
        lambda s, x: s.out(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(6, 5), b=nn.Linear(5, 5), out=nn.Linear(5, 2)
    )
    net.c = net.a  # a second name
    with torch.no_grad():
        net.b.weight[:, 1] = 0
    smaller = vd.shrink(net, x)
    assert smaller.c is smaller.a and smaller.a.out_features == 4


def test_what_the_net_was_stays():
    net = linear(5).double()
    with torch.no_grad():
        net[0].weight[2] = 0
    net[0].bias.requires_grad_(False)
    net[1].train(), net[2].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    smaller = vd.shrink(net, torch.randn(1, 4).double())
    assert [layer.training for layer in smaller.modules()] == [layer.training for layer in net.modules()]
    assert not smaller[0].bias.requires_grad and smaller[0].weight.requires_grad and smaller[0].weight.is_leaf
    assert smaller[0].weight.dtype == torch.float64
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    smaller.load_state_dict(smaller.state_dict())
    smaller(torch.randn(2, 4).double()).sum().backward()


@pytest.mark.parametrize("inputs", [torch.ones(2, 5), (torch.ones(2, 4), 1), {"y": torch.ones(2, 4)}, (), None])
def test_examples_that_the_net_does_not_take(inputs):
    with pytest.raises(ValueError, match="shrink: expected example_inputs that the net takes, got"):
        vd.shrink(linear(5), inputs)


def test_arguments_by_name_and_by_position():
    net = Net(lambda s, x, *, shift=0.0: s.b(F.relu(s.a(x)) + shift), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with torch.no_grad():
        net.b.weight[:, 0] = 0
    for inputs in (torch.ones(1, 3), (torch.ones(1, 3),), {"x": torch.ones(1, 3), "shift": 0.5}):
        assert vd.shrink(net, inputs).a.out_features == 3
    shifted = {"x": torch.ones(1, 3), "shift": torch.ones(1, 4)}  # an input that has the size of the units
    assert vd.shrink(net, shifted).a.out_features == 4


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.cumsum(-1)


def test_what_cannot_be_followed_stays_or_is_refused():
    net = Net(lambda s, x: s.b(Hidden.apply(s.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with torch.no_grad():
        net.b.weight[:, 0] = 0
    assert vd.shrink(net, torch.randn(2, 3)).a.out_features == 4
    noisy = Net(lambda s, x: s.a(x) + torch.rand(()), a=nn.Linear(3, 4))
    with pytest.raises(ValueError, match="shrink: expected the outputs of the net .* got outputs up to .* apart"):
        vd.shrink(noisy, torch.randn(2, 3))
