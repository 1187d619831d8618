"""Several layers, both directions, packed sequences: units that no one reads go, and each layer keeps as many."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pyro_vd as vd
from helpers.shrink_nets import Net

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
UNITS = 6


def net_of(kind, read, *, both_ways=False, wide=None, **options):
    """A Linear layer, a recurrent one, and a Linear layer that reads what ``read`` takes of its two outputs."""
    layer = kind(5, UNITS, bidirectional=both_ways, **options)
    of_packed, wide = options.get("batch_first", False), wide or UNITS * (1 + both_ways)

    def call(s, x, lengths=None):
        x = F.relu(s.a(x))
        if lengths is None:
            return s.c(read(*s.b(x)))
        packed = pack_padded_sequence(x, lengths, batch_first=of_packed, enforce_sorted=False)
        outputs, last = s.b(packed)
        return s.c(read(pad_packed_sequence(outputs, batch_first=of_packed)[0], last))

    return Net(call, a=nn.Linear(4, 5), b=layer, c=nn.Linear(wide, 3))


def hidden(last):
    return last[0] if isinstance(last, tuple) else last


READ = {
    "outputs": lambda outputs, last: outputs,
    "both ends": lambda outputs, last: torch.cat([hidden(last)[-2], hidden(last)[-1]], 1),
    "first and last": lambda outputs, last: torch.cat([hidden(last)[0], hidden(last)[-1, :]], -1),
    "a view": lambda outputs, last: hidden(last).unflatten(0, (-1, 2))[-1].transpose(0, 1).flatten(1),
}


def kill(net, kind, live):
    """Of each layer and direction only the units ``live[i]`` are read: by the next layer or ``c``, and each other."""
    gates, layers = GATES[kind], net.b.num_layers
    ends = ["", "_reverse"] if net.b.bidirectional else [""]
    keep = [torch.zeros(UNITS).index_fill_(0, torch.tensor(one, dtype=torch.long), 1.0) for one in live]
    with torch.no_grad():
        for (layer, end), kept in zip(itertools.product(range(layers), ends), keep, strict=True):
            own = getattr(net.b, f"weight_hh_l{layer}{end}")
            own *= kept + (1 - kept)[:, None].repeat(gates, 1)  # the dead read all
        for layer, end in itertools.product(range(1, layers), ends):
            below = len(ends) * (layer - 1)
            getattr(net.b, f"weight_ih_l{layer}{end}").mul_(torch.cat(keep[below : below + len(ends)]))
        net.c.weight *= torch.cat(keep)[-net.c.in_features :]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(("both_ways", "read", "options"), [
    (True, "outputs", {"num_layers": 2, "dropout": 0.5, "batch_first": True}),
    (True, "both ends", {"num_layers": 2, "bias": False, "batch_first": True}),
    (False, "outputs", {"num_layers": 3}),
    (True, "both ends", {"batch_first": True}),
    (False, "first and last", {"num_layers": 2, "wide": 2 * UNITS, "batch_first": True}),
])  # fmt: skip
def test_each_layer_keeps_as_many_units(kind, both_ways, read, options):
    """One of 2 live units keeps 3, since another has 3; outputs are the same of other sequences, packed ones too."""
    torch.manual_seed(0)
    net = net_of(kind, READ[read], both_ways=both_ways, **options)
    live = [[0, 4, 5], [1, 2], [3, 4], [2]][: net.b.num_layers * (1 + both_ways)]
    kill(net, kind, live)
    net.double().eval()
    wide, options = net.c.in_features // UNITS, {key: value for key, value in options.items() if key != "wide"}
    first, smaller = options.get("batch_first", False), None
    for shrunk_packed in (False, True):
        shape = (3, 4) if first else (4, 3)
        inputs = (torch.randn(*shape, 4).double(),) + ((torch.tensor([2, 4, 3]),) if shrunk_packed else ())
        smaller = vd.shrink(net, inputs)
        assert smaller.b.hidden_size == 3 and smaller.c.in_features == 3 * wide
        assert {name: tuple(one.shape) for name, one in smaller.b.named_parameters()} == {
            name: tuple(one.shape)
            for name, one in kind(5, 3, bidirectional=both_ways, **options).named_parameters()
        }  # fmt: skip
        for batch, length in ((2, 7), (1, 1)):
            x = torch.randn(*((batch, length) if first else (length, batch)), 4).double()
            lengths = torch.randint(1, length + 1, (batch,))
            for args in ((x,), (x, lengths)):
                torch.testing.assert_close(smaller(*args), net(*args), rtol=1e-6, atol=1e-6)
    smaller.train()(x).sum().backward()
    assert smaller.b.weight_hh_l0.grad is not None
    smaller.load_state_dict(smaller.state_dict())


def beside_one_that_shrinks(net):
    """The sum with a GRU of which two units are read, which stays whole too where shrinking has to be tried again."""
    call, net.d, net.e = net.call, nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)
    with torch.no_grad():
        net.e.weight[:, 1:3] = 0
        net.d.weight_hh_l0.unflatten(0, (3, 4))[:, [0, 3], 1:3] = 0
    net.call = lambda s, x: call(s, x).mean() + s.e(s.d(x)[1][0])
    return net


@pytest.mark.parametrize(("options", "read"), [
    ({"proj_size": 3, "wide": 3}, "outputs"),
    ({"num_layers": 2, "both_ways": True}, "a view"),
    ({"both_ways": True}, "outputs"),
], ids=["projections", "view", "tied"])  # fmt: skip
def test_what_is_not_followed_stays(options, read):
    """An LSTM with projections; of last states in a view, all units; one whose directions share weights."""
    torch.manual_seed(0)
    net = beside_one_that_shrinks(net_of(nn.LSTM, READ[read], batch_first=True, **options))
    with torch.no_grad():
        net.c.weight[:, 1::2] = 0
        net.b.weight_hh_l0[:] = 0
    if read == "outputs" and "wide" not in options:
        net.b.weight_hh_l0_reverse = net.b.weight_hh_l0
    net.double().eval()
    smaller = vd.shrink(net, torch.randn(2, 5, 4).double())
    assert (smaller.b.hidden_size, smaller.d.hidden_size) == (UNITS, 2)
    x = torch.randn(3, 6, 4).double()
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-6, atol=1e-6)


def test_a_direction_that_no_one_reads():
    """It keeps as many units as the other."""
    torch.manual_seed(0)
    net = net_of(nn.GRU, READ["outputs"], both_ways=True, batch_first=True)
    kill(net, nn.GRU, [[1, 5], []])
    x = torch.randn(2, 5, 4)
    with pytest.warns(UserWarning, match="got none in 'b.weight_ih_l0_reverse'"):
        smaller = vd.shrink(net, x)
    assert smaller.b.hidden_size == 2
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-5, atol=1e-5)


def test_the_output_at_a_position_that_the_data_say():
    """``gather`` along time, whose index has the number of units that the net has, or one that is written."""
    torch.manual_seed(0)

    def call(s, x, size=None):
        outputs = s.b(F.relu(s.a(x)))[0]
        last = x.abs().argmax(1)[:, :1, None].expand(-1, 1, size or outputs.shape[-1])
        return s.c(outputs.gather(1, last).squeeze(1))

    x = torch.randn(3, 5, 4)
    for written, units in ((None, 2), (UNITS, UNITS)):
        net = net_of(nn.LSTM, READ["outputs"], batch_first=True)
        net.call = lambda s, x, size=written: call(s, x, size)
        kill(net, nn.LSTM, [[0, 3]])
        smaller = vd.shrink(net, x)
        assert smaller.b.hidden_size == units
        torch.testing.assert_close(smaller(x), net(x), rtol=1e-5, atol=1e-5)
