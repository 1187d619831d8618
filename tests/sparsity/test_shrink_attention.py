"""Dead heads of attention go, with the same outputs, under every mask and layout of the inputs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers import shrink_nets
from helpers.shrink_nets import Net, networks
from pyro_vd.sparsity.heads import FewerHeads

HEADS, SIZE = 4, 3


def kill(attention, unread=(), unfed=()):
    """Heads that the output does not read, and heads without weights of values."""
    values = attention.v_proj_weight
    values = attention.in_proj_weight.chunk(3)[2] if values is None else values
    with torch.no_grad():
        if attention.in_proj_bias is not None:
            attention.in_proj_bias.normal_(), attention.out_proj.bias.normal_()
        shape = (attention.num_heads, attention.head_dim)
        attention.out_proj.weight.unflatten(1, shape)[:, list(unread)] = 0
        values.unflatten(0, shape)[list(unfed)] = 0


def attention(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(HEADS * SIZE, HEADS, **options)
    kill(layer, unread=[1], unfed=[2])
    return layer.double().eval()


LAYERS = [
    {"batch_first": True}, {}, {"bias": False, "batch_first": True}, {"kdim": 5, "vdim": 7, "batch_first": True},
]  # fmt: skip
MASKS = [
    {},
    {"attn_mask": torch.ones(4, 6, dtype=torch.bool).triu(2)},
    {"attn_mask": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()},
    {"attn_mask": torch.randn(2 * HEADS, 4, 6, generator=torch.Generator().manual_seed(0)).double()},
    {"key_padding_mask": torch.tensor([[False] * 6, [False] * 4 + [True] * 2])},
    {
        "attn_mask": torch.ones(4, 6, dtype=torch.bool).triu(2),
        "key_padding_mask": torch.tensor([[False] * 6, [False] * 4 + [True] * 2]),
        "is_causal": True,
        "need_weights": False,
    },
]


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_attention_without_dead_heads_is_the_same_under_every_mask(options):
    layer = attention(**options)
    width, kdim, vdim = HEADS * SIZE, options.get("kdim", HEADS * SIZE), options.get("vdim", HEADS * SIZE)
    query, key, value = (torch.randn(2, n, d).double() for n, d in ((4, width), (6, kdim), (6, vdim)))
    if not options.get("batch_first"):
        query, key, value = (one.transpose(0, 1) for one in (query, key, value))
    net = Net(lambda s, *args, **masks: s.attention(*args, **masks)[0], attention=layer)
    smaller = vd.shrink(net, (query, key, value))
    assert smaller.attention.heads == (0, 3) and smaller.attention.out_proj.in_features == 2 * SIZE
    sizes = [sum(p.numel() for p in one.parameters()) for one in (smaller, net)]
    assert 2 * sizes[0] == sizes[1] + (0 if options.get("bias") is False else width)  # the output's bias is whole
    for masks in MASKS:
        torch.testing.assert_close(smaller(query, key, value, **masks), net(query, key, value, **masks))
    if options.get("batch_first"):
        ours = smaller(query[0], key[0], value[0], key_padding_mask=MASKS[4]["key_padding_mask"][1])
        theirs = net(query[0], key[0], value[0], key_padding_mask=MASKS[4]["key_padding_mask"][1])
        torch.testing.assert_close(ours, theirs)
    for one in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller.attention))):
        assert isinstance(one, nn.Module)
    smaller.load_state_dict(smaller.state_dict())
    smaller(query, key, value).sum().backward()
    with pytest.raises(ValueError, match="is_causal: expected attn_mask"):
        smaller(query, key, value, is_causal=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("first", [True, False])
def test_heads_of_a_transformer(first):
    """Encoder and decoder layers, with and without gradients, and the mask of padded positions."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 4, 16, dropout=0.1, batch_first=True, norm_first=first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not first).eval()
    decoder = nn.TransformerDecoderLayer(12, 4, 16, batch_first=True, norm_first=first).eval()
    net = Net(lambda s, x, **masks: s.decoder(x, s.encoder(x, **masks)), encoder=encoder, decoder=decoder).double()
    kill(encoder.layers[0].self_attn, unread=[0, 1])
    kill(decoder.multihead_attn, unfed=[3])
    x = torch.randn(2, 5, 12).double()
    smaller = vd.shrink(net.eval(), x)
    assert smaller.encoder.layers[0].self_attn.heads == (2, 3) and smaller.decoder.multihead_attn.heads == (0, 1, 2)
    assert type(smaller.encoder.layers[1].self_attn) is type(smaller.decoder.self_attn) is nn.MultiheadAttention
    torch.testing.assert_close(smaller(x), net(x))
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    torch.testing.assert_close(smaller(x, src_key_padding_mask=mask), net(x, src_key_padding_mask=mask))
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), net(x))
        ours, theirs = (one.encoder(x, src_key_padding_mask=mask)[~mask] for one in (smaller, net))
    torch.testing.assert_close(ours, theirs)  # at padded positions PyTorch's fast path gives zeros
    torch.testing.assert_close(smaller.train().encoder.layers[0].self_attn.dropout, 0.1)


@pytest.mark.parametrize("unread", [[0, 1], [2, 3]])
def test_a_dead_attention_keeps_a_head_and_says_so(unread):
    net = nn.TransformerEncoderLayer(12, 4, 16, dropout=0.0, batch_first=True).eval()
    kill(net.self_attn, unread=unread, unfed={0, 1, 2, 3}.difference(unread))
    with pytest.warns(UserWarning, match="expected a live unit in every layer, got none in 'self_attn'"):
        smaller = vd.shrink(net, torch.randn(2, 5, 12))
    assert smaller.self_attn.heads == (0,)
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(smaller(x), net(x))


def test_attention_whose_weights_are_read_or_tied_or_of_another_kind_stays_whole():
    x = torch.randn(2, 5, 12).double()
    both = Net(lambda s, x: s.attention(x, x, x), attention=attention(batch_first=True))
    mixed = Net(lambda s, x: s.attention(x, x, x)[1].mean() * s.attention(x, x, x, need_weights=False)[0],
                attention=attention(batch_first=True))  # fmt: skip
    tied = Net(
        lambda s, x: s.b(*3 * [s.a(x, x, x)[0]])[0], a=attention(batch_first=True), b=attention(batch_first=True)
    )
    tied.b.in_proj_weight = tied.a.in_proj_weight
    extra = Net(lambda s, x: s.attention(x, x, x)[0], attention=attention(batch_first=True, add_bias_kv=True))
    for net in (both, mixed, tied, extra):
        smaller = vd.shrink(net, x)
        assert not any(isinstance(layer, FewerHeads) for layer in smaller.modules())
        torch.testing.assert_close(smaller(x), net(x))
    twice = Net(lambda s, x: s.b(*3 * [s.a(x, x, x)[0]])[0], a=attention(batch_first=True))
    twice.b = twice.a
    smaller = vd.shrink(twice, x)
    assert smaller.a is smaller.b and smaller.a.heads == (0, 3)
    torch.testing.assert_close(smaller(x), twice(x))


def test_heads_of_a_vision_transformer():
    torch.manual_seed(0)
    net = networks.ViT().eval()
    for layer in net.encoder.layers:
        kill(layer.self_attn, unread=[0], unfed=[3])
    x = torch.randn(2, 1, 8, 8)
    smaller = vd.shrink(net, x)
    assert [layer.self_attn.heads for layer in smaller.encoder.layers] == [(1, 2), (1, 2)]
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_hand", [True, False])
def test_heads_of_an_attention_written_in_the_forward_method(by_hand):
    """A head goes where no one reads it, or its values are zero; one whose mask is an input's own stays."""
    torch.manual_seed(0)
    net = shrink_nets.attention(by_hand)
    with torch.no_grad():
        net.d.weight[:, 2:4] = 0
        net.d.weight[:, 4] = 0  # a half of the third head
        net.c.weight[6:] = 0
    x = torch.randn(2, 5, 6)
    smaller = vd.shrink(net, x)
    assert [layer.out_features for layer in (smaller.a, smaller.b, smaller.c)] == [4, 4, 4]
    torch.testing.assert_close(smaller(x[:1, :3]), net(x[:1, :3]))


def test_a_number_of_heads_that_is_written_in_the_forward_method_stays():
    net = shrink_nets.three(
        lambda s, x: s.b(s.a(x).view(*x.shape[:2], 4, -1).softmax(-1).flatten(2)),
        nn.Linear(6, 16), nn.Linear(16, 2)
    )  # fmt: skip
    with torch.no_grad():
        net.b.weight[:, :8] = 0
    x = torch.randn(2, 5, 6)
    smaller = vd.shrink(net, x)
    torch.testing.assert_close(smaller(x), net(x))
    assert smaller.a.out_features == 16


def test_heads_that_are_constant_on_a_small_example_only():
    """Keys are one constant; a product with them is a number of its own at each query, of which the example has one."""
    net = shrink_nets.three(
        lambda s, x: s.c((s.a(x).view(*x.shape[:2], -1, 1).transpose(1, 2) @ s.b(x).view(*x.shape[:2], -1, 1)
                          .transpose(1, 2).transpose(-2, -1)).transpose(1, 2).flatten(2)),
        nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 2)
    )  # fmt: skip
    with torch.no_grad():
        net.b.weight.zero_()
    smaller, x = vd.shrink(net, torch.randn(1, 1, 6)), torch.randn(3, 1, 6)
    torch.testing.assert_close(smaller(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_heads_of_bert(implementation):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=16, attn_implementation=implementation,
    )  # fmt: skip
    net = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        net.encoder.layer[0].attention.output.dense.weight[:, 4:12] = 0
        net.encoder.layer[1].intermediate.dense.weight[5:] = 0
    words = torch.randint(50, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    wrapped = Net(lambda s, words, mask: s.net(input_ids=words, attention_mask=mask).last_hidden_state, net=net)
    smaller = vd.shrink(wrapped, (words, mask))
    assert smaller.net.encoder.layer[0].attention.self.query.out_features == 8
    assert smaller.net.encoder.layer[1].intermediate.dense.out_features == 5
    torch.testing.assert_close(smaller(words[:2], mask[:2]), wrapped(words[:2], mask[:2]), rtol=1e-5, atol=1e-5)
