"""Pruned nets whose zeros are held by masks: fine-tuned, saved, copied, pruned again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import pyro_vd as vd

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # said once


def normal(log_alpha, loc):
    return vd.DropoutNormal(loc, log_alpha)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(torch.relu(self.encoder(x)))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x):
        keys = x[..., :3] if self.attention.kdim == 3 else x
        return self.attention(x, keys, keys)[0]


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cells = kind(4, 3, batch_first=True, **options)

    def forward(self, x):
        return self.cells(x)[0]


class TiedOutput(nn.Module):
    """The rows of an embedding are also the output layer, as in language models."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(6, 4)

    def forward(self, x):
        return self.words((x > 0).long()).mean(-2) @ self.words.weight.T


class ReadWeight(nn.Module):
    """A layer that is never called."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight)


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).mT


NETS = {
    "perceptron": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
    "a layer alone": lambda: nn.Linear(4, 3),
    "convolutions": lambda: nn.Sequential(nn.Conv1d(4, 3, 2), nn.BatchNorm1d(3), nn.ConvTranspose1d(3, 2, 2)),
    "tied": Tied,
    "shared": Shared,
    "tied output": TiedOutput,
    "read weight": ReadWeight,
    "masked before": lambda: nn.Sequential(
        torch_prune.l1_unstructured(nn.Linear(4, 5), "weight", 0.4), nn.Linear(5, 2)
    ),
    "parametrized": lambda: nn.Sequential(parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric())),
    "attention": Attention,
    "attention with other keys": lambda: Attention(kdim=3, vdim=3),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
    "lstm": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU),
    "projected lstm": lambda: Recurrent(nn.LSTM, proj_size=2),
}


def pruned(name, masked=True):
    """A net pruned by about half, its input, and the mask of every weight."""
    torch.manual_seed(1)
    net = NETS[name]()
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
    parameters = dict(net.named_parameters())
    posteriors = {}
    for weight in bnn.weight_names:
        shape = parameters[weight].shape
        posteriors[bnn.site(weight)] = normal(6 * torch.rand(shape), 0.5 + torch.rand(shape))
    x = torch.randn(3, 4, 4)
    return vd.prune(bnn, posteriors, masked=masked), x, vd.keep_masks(posteriors), bnn


def effective(net):
    """Every weight by the name that it has without masks."""
    return {
        f"{path}.{name}".removeprefix("."): getattr(layer, name)
        for path, layer in net.named_modules()
        for name in sorted({n.removesuffix("_orig") for n, value in layer._parameters.items() if value is not None})
    }


@pytest.mark.parametrize("name", NETS)
def test_masked_and_plain_are_one_function(name):
    masked, x, masks, _ = pruned(name)
    plain, *_ = pruned(name, masked=False)
    torch.testing.assert_close(masked(x), plain(x), rtol=0, atol=0)
    assert torch_prune.is_pruned(masked)
    assert (name == "masked before") == torch_prune.is_pruned(plain)
    assert 0.2 < torch.cat([mask.flatten() for mask in masks.values()]).float().mean() < 0.8


@pytest.mark.parametrize("name", NETS)
def test_fine_tuning_keeps_zeros_and_trains_the_rest(name):
    net, x, masks, bnn = pruned(name)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    before = {weight: value.detach().clone() for weight, value in effective(net).items()}
    for _ in range(4):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        schedule.step()
    output = net(x)
    for weight in bnn.weight_names:
        plain_name, mask = weight.removesuffix("_orig"), masks[bnn.site(weight)]
        value = effective(net)[plain_name]
        assert (value[~mask] == 0).all(), weight
        moved = (value != before[plain_name]) & mask
        own = getattr(net[0], "weight_mask", None) if name == "masked before" and weight.startswith("0") else None
        expected = mask if own is None else mask & own.bool()
        if name == "parametrized":
            expected = expected.triu()  # what the parametrization reads
        if name == "tied output":
            expected = expected & (value != 0)
        assert moved.sum() >= 0.8 * expected.sum() > 0, f"{weight} is not trained"
    # The weights that are saved and removed are those that the net computed with.
    copied, *_ = pruned(name)
    copied.load_state_dict(net.state_dict())
    torch.testing.assert_close(copied.train()(x), output, rtol=0, atol=0)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for layer in list(net.modules()):
        for key in [key for key in layer._parameters if key.endswith("_orig")]:
            torch_prune.remove(layer, key.removesuffix("_orig"))
    assert not torch_prune.is_pruned(net) and not any(key.endswith("_mask") for key in net.state_dict())
    torch.testing.assert_close(net(x), output, rtol=1e-6, atol=1e-6)
    assert len(net.state_dict()) < len(state)


def test_attention_taken_out_of_its_net_stays_masked():
    net, x, _, _ = pruned("transformer")
    attention = net.self_attn
    with torch.no_grad():
        attention.out_proj.weight_orig.fill_(1.0)
    expected = attention.out_proj.weight_mask.sum(1)
    attention(x, x, x)
    assert torch.equal(attention.out_proj.weight.sum(1), expected)


@pytest.mark.parametrize("name", ["tied", "shared", "lstm", "masked before"])
def test_copies_of_masked_nets(name):
    net, x, _, _ = pruned(name)
    copied = copy.deepcopy(net)
    torch.testing.assert_close(copied(x), net(x), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2.0)
    assert not torch.allclose(copied(x), net(x))
    if name == "tied":
        assert copied.encoder.weight_orig is copied.decoder.weight_orig
    if name == "lstm":
        assert any(flat is copied.cells.weight_ih_l0 for flat in copied.cells._flat_weights)


def test_a_masked_net_is_trained_and_pruned_again():
    net, x, _, _ = pruned("perceptron")
    net(x).sum().backward()  # its weights have a history now, which PyTorch refuses to copy
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
    assert bnn.weight_names == ("0.weight_orig", "2.weight_orig")
    guide = {
        bnn.site(n): normal(torch.full_like(p, 5.0), p) for n, p in net.named_parameters() if n in bnn.weight_names
    }
    guide["net.2.weight_orig"] = normal(torch.zeros(2, 5), torch.ones(2, 5))
    again = vd.prune(bnn, guide, masked=True)
    assert not again[0].weight.any(), "over the threshold"
    assert torch.equal(again[2].weight, net[2].weight_mask), "the first mask holds"
    assert torch.equal(again(x), again[2](torch.relu(again[0].bias)).expand(3, 4, 2))


def test_the_masked_weights_of_a_pruned_net_are_up_to_date_before_its_first_call():
    layer = torch_prune.l1_unstructured(nn.Linear(3, 2), "weight", 2)
    bnn = vd.BayesianModule(nn.Sequential(layer), vd.ImproperLogUniform())
    for masked in (False, True):
        net = vd.prune(bnn, {"net.0.weight_orig": normal(torch.zeros(2, 3), torch.full((2, 3), 7.0))}, masked=masked)
        assert torch.equal(net[0].weight, 7 * layer.weight_mask)
