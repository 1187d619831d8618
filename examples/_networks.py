"""Common small networks, in plain PyTorch and of other packages; none of them knows of random weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence


class Residual(nn.Module):
    """Two convolutions with BatchNorm around a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.skip(x))


class ResNet(nn.Module):
    """Images (batch, 1, 8, 8) to logits of 10 classes."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.Sequential(Residual(channels, channels, 1), Residual(channels, 2 * channels, 2))
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ViT(nn.Module):
    """Images (batch, 1, 8, 8), cut into patches of 2 x 2, to logits of 10 classes."""

    def __init__(self, units: int = 32):
        super().__init__()
        self.patches = nn.Conv2d(1, units, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, units))
        self.token = nn.Parameter(torch.zeros(1, 1, units))
        layer = nn.TransformerEncoderLayer(units, 4, 2 * units, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.head(self.encoder(tokens)[:, 0])


class LSTMClassifier(nn.Module):
    """Sequences (batch, 8, 8), the rows of an image, to logits of 10 classes."""

    def __init__(self, units: int = 32):
        super().__init__()
        self.lstm = nn.LSTM(8, units, batch_first=True)
        self.head = nn.Sequential(nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[1][0][-1])


class PackedLSTM(LSTMClassifier):
    """The same for sequences of the rows up to the last that is not empty, which are packed: of any length."""

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths(x).tolist(), batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-1])


class MaskedLSTM(LSTMClassifier):
    """The same function without packing: the output at the last row that is not empty."""

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x)
        last = (lengths(x) - 1)[:, None, None].expand(-1, 1, outputs.shape[-1])
        return self.head(outputs.gather(1, last).squeeze(1))


def lengths(x: Tensor) -> Tensor:
    """Numbers of rows up to the last that is not empty, at least 1."""
    return (x.any(-1) * torch.arange(1, x.shape[1] + 1)).amax(1).clamp(min=1)


class UNet(nn.Module):
    """Images (batch, 1, 8, 8) to the logit of every pixel, over two scales joined by a skip connection."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.out = nn.Conv2d(2 * channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        return self.out(torch.cat([fine, F.relu(self.up(self.middle(fine)))], 1))


class BagOfWords(nn.Module):
    """Texts (batch, words), padded with word 0, to logits of 4 topics."""

    def __init__(self, words: int = 200, units: int = 16):
        super().__init__()
        self.bag = nn.EmbeddingBag(words, units, mode="mean", padding_idx=0)
        self.head = nn.Linear(units, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


class TextTransformer(nn.Module):
    """Texts (batch, words), padded with word 0, to logits of 4 topics: a BERT or a GPT-2 of transformers."""

    def __init__(self, kind: str, words: int = 200, units: int = 16):
        super().__init__()
        transformers: Any = import_module("transformers")
        if kind == "bert":
            made = transformers.BertConfig(
                vocab_size=words, hidden_size=units, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=2 * units, max_position_embeddings=16, num_labels=4)  # fmt: skip
            self.net = transformers.BertForSequenceClassification(made)
        else:
            made = transformers.GPT2Config(
                vocab_size=words, n_embd=units, n_layer=1, n_head=2, n_positions=16, num_labels=4, pad_token_id=0,
                bos_token_id=1, eos_token_id=2)  # fmt: skip
            self.net = transformers.GPT2ForSequenceClassification(made)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(input_ids=x).logits


class PixelGraph(nn.Module):
    """Images (batch, 1, 8, 8), whose pixels are the nodes of a grid, to logits of 10 classes.

    The graph network is the GIN or the GCN of torch_geometric.
    """

    places: Tensor

    def __init__(self, kind: str = "GIN", units: int = 32):
        super().__init__()
        graphs: Any = import_module("torch_geometric.nn")
        edges, places = import_module("torch_geometric.utils").grid(8, 8)
        self.register_buffer("edges", edges)
        self.register_buffer("places", places / 8)
        # The grid has an edge from every node to itself; to look for those that are missing is to branch on data.
        options = {"add_self_loops": False} if kind == "GCN" else {}
        self.graph = getattr(graphs, kind)(3, units, 3, units, **options)
        self.head = nn.Linear(64 * units, 10)

    def forward(self, x: Tensor) -> Tensor:
        nodes = torch.cat([x.flatten(1)[..., None], self.places.expand(len(x), -1, -1)], -1)
        return self.head(self.graph(nodes, self.edges).flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet,
    "vit": ViT,
    "lstm": LSTMClassifier,
    "packed": PackedLSTM,
    "masked": MaskedLSTM,
    "unet": UNet,
    "embedding_bag": BagOfWords,
}
if find_spec("transformers"):
    NETWORKS |= {"bert": lambda: TextTransformer("bert"), "gpt2": lambda: TextTransformer("gpt2")}
if find_spec("torch_geometric"):
    NETWORKS |= {"gin": PixelGraph, "gcn": lambda: PixelGraph("GCN")}
