"""A smaller net is the net at other inputs too: of another length, after an example that does not tell units apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyro_vd as vd
from helpers.shrink_nets import Net
from pyro_vd.sparsity.variations import variations


def with_dead_units(net, bias=1.0):
    """The first three units of the first layer give ``relu(bias)``."""
    with torch.no_grad():
        net.a.weight[:3], net.a.bias[:3] = 0.0, bias
    return net.double().eval()


@pytest.mark.parametrize("bias", [1.0, -1.0])
@pytest.mark.parametrize("reduction", ["sum", "mean", "amax"])
def test_a_reduction_over_positions_at_another_length(reduction, bias):
    """A sum of ones is the length; a mean and a maximum of them are one, and a sum of zeros is zero."""
    net = Net(lambda s, x: s.b(getattr(F.relu(s.a(x)), reduction)(1)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    net = with_dead_units(net, bias)
    smaller, x = vd.shrink(net, torch.randn(2, 3, 4).double()), torch.randn(2, 10, 4).double()
    torch.testing.assert_close(smaller(x), net(x))
    assert smaller.a.out_features == (6 if reduction == "sum" and bias > 0 else 3)


def test_a_sum_over_an_image_of_another_size():
    net = Net(lambda s, x: s.b(F.relu(s.a(x)).sum((2, 3))), a=nn.Conv2d(1, 6, 3), b=nn.Linear(6, 2))
    net = with_dead_units(net)
    smaller, x = vd.shrink(net, torch.randn(2, 1, 6, 6).double()), torch.randn(2, 1, 9, 7).double()
    torch.testing.assert_close(smaller(x), net(x))


def test_a_table_that_is_the_weight_of_an_inner_layer_stays_whole():
    """Rows of it that no unit reads are words."""
    net = Net(lambda s, i: s.b(F.relu(s.a(s.table(i)))), table=nn.Embedding(7, 4), a=nn.Linear(4, 7), b=nn.Linear(7, 2))
    net.a.weight = net.table.weight
    net.double().eval()
    with torch.no_grad():
        net.b.weight[:, 2:4] = 0.0
    words = torch.arange(7).reshape(1, 7)
    smaller = vd.shrink(net, words)
    assert smaller.a.weight is smaller.table.weight and smaller.table.weight.shape == (7, 4)
    torch.testing.assert_close(smaller(words), net(words))


def attention(read_size, **layers):
    """Each head by itself; logits are scaled by a size that the forward method reads."""

    def call(s, x):
        q, k, v = (layer(x) for layer in (s.q, s.k, s.v))
        scale = read_size(q) ** -0.5
        q, k, v = (one.unflatten(-1, (-1, 3)).transpose(1, 2) for one in (q, k, v))
        return s.out(((q @ k.transpose(-2, -1) * scale).softmax(-1) @ v).transpose(1, 2).flatten(2))

    net = Net(call, **{name: nn.Linear(12, 12) for name in ("q", "k", "v", "out")}, **layers)
    with torch.no_grad():
        net.out.weight[:, :6] = 0.0  # no one reads two heads of four
        net.q.weight *= 4
    return net.double().eval()


BLIND = {"tokens that are the same": torch.ones(2, 5, 12), "one token": torch.ones(1, 1, 12)}


@pytest.mark.parametrize("x", BLIND.values(), ids=BLIND)
def test_a_scale_of_attention_that_the_example_does_not_show(x):
    """The width of all heads changes with their number: refused; that of one head does not: half of the units go."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"apart, for inputs of .* a number computed from the size of an activation"):
        vd.shrink(attention(lambda q: q.shape[-1]), x.double())
    net, other = attention(lambda q: 3), torch.randn(2, 4, 12).double()
    torch.set_rng_state(state)
    smaller = vd.shrink(net, x.double())
    assert torch.equal(torch.get_rng_state(), state)
    assert smaller.q.out_features == 6
    torch.testing.assert_close(smaller(other), net(other))


@pytest.mark.parametrize("words", [torch.zeros(2, 5).long(), torch.full((1, 1), 3)], ids=["the same", "one"])
def test_words_that_the_example_does_not_show(words):
    net = attention(lambda q: q.shape[-1])
    net = nn.Sequential(nn.Embedding(5, 12), net).double().eval()
    with pytest.raises(ValueError, match="apart, for inputs of"):
        vd.shrink(net, words)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_number_read_from_a_shape_is_no_constant(axis):
    """Units that read no input stay where what they give depends on the sizes."""
    net = Net(lambda s, x: s.b(F.relu(s.a(x)) * x.shape[axis]), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    net, x = with_dead_units(net), torch.randn(5, 4, 4).double()
    smaller = vd.shrink(net, torch.randn(2, 3, 4).double())
    torch.testing.assert_close(smaller(x), net(x))
    assert smaller.a.out_features == 6


def test_inputs_that_the_net_does_not_take_are_not_compared():
    """An image of one size, whose net checks it; inputs, buffers and the global random state stay."""

    def call(s, x, words):
        assert x.shape[2:] == (6, 6) and (words < 3).all(), "one size, three words"
        s.calls += 1
        return s.b(F.relu(s.a(x + s.table(words)[:, None])).flatten(1))

    net = Net(call, a=nn.Conv2d(1, 6, 3), b=nn.Linear(96, 2), table=nn.Embedding(3, 6))
    net.register_buffer("calls", torch.zeros(()))
    net = with_dead_units(net)
    x, words = torch.randn(2, 1, 6, 6).double(), torch.randint(3, (2, 6))
    smaller = vd.shrink(net, (x.clone(), words))
    assert smaller.a.out_channels == 3 and net.calls == 0
    torch.testing.assert_close(smaller(x.clone(), words), net(x.clone(), words))


def test_the_features_of_a_recurrent_layer_are_not_varied():
    """PyTorch's kernel takes more of them than there are weights for, and reads what lies behind."""
    net = nn.LSTM(8, 4, batch_first=True)
    called = variations(Net(lambda s, x: s.a(x)[0], a=net).eval(), (torch.randn(2, 3, 8),), {})
    assert [one.args[0].shape for one in called] == [(2, 3, 8), (4, 3, 8), (2, 6, 8), (2, 3, 8)]
    words = variations(nn.Embedding(5, 8), (torch.full((2, 3), 4),), {})
    assert [one.args[0].shape for one in words] == [(2, 3), (4, 3), (2, 6)]
    assert all(one.args[0].max() <= 4 and one.args[0].unique().numel() > 1 for one in words)
