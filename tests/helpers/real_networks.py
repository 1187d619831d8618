"""Networks of transformers, torch_geometric and peft in tiny configurations, and a few of the kinds of torchvision.

Each entry makes a net in evaluation mode and the arguments of a call; ``pick`` takes a tensor from what it returns.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
INSTALLED = {name for name in ("transformers", "torch_geometric", "peft") if importlib.util.find_spec(name)}

WORDS = torch.tensor([[5, 2, 7, 1], [3, 9, 4, 8]])
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {**SIZES, "vocab_size": 20, "max_position_embeddings": 8, "pad_token_id": 0}
PICTURE = {**SIZES, "image_size": 16, "patch_size": 8}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


@dataclass(frozen=True)
class RealNet:
    """A network; ``share`` is the least part of its matrices that is random by default."""

    make: Callable[[], nn.Module]
    kwargs: dict[str, Any]
    pick: Callable[[Any], Tensor]
    share: float = 0.6
    package: str = "transformers"
    args: tuple = ()
    options: dict[str, Any] = field(default_factory=dict)


def hugging(model: str, config: str, kwargs: dict, pick: str, share: float = 0.6, **options: Any) -> RealNet:
    """A network of transformers, by the names of its class and of its configuration."""

    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**options)
        return getattr(transformers, model)._from_config(made, attn_implementation="eager")

    return RealNet(make, kwargs, lambda output: getattr(output, pick), share)


HIDDEN, LOGITS = "last_hidden_state", "logits"
IDS, PIXELS = {"input_ids": WORDS}, {"pixel_values": IMAGES}
BOTH = {**IDS, "decoder_input_ids": WORDS}
NO_CACHE = {**IDS, "use_cache": False}
GROUPED = {**TEXT, "num_key_value_heads": 1, "head_dim": 4}
ENCODER_DECODER = {
    "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 20, "max_position_embeddings": 8, **SPECIAL,
}  # fmt: skip
CLIP_TEXT = {**TEXT, "projection_dim": 8, "bos_token_id": 1, "eos_token_id": 2}

TRANSFORMERS = {
    "bert": hugging("BertForSequenceClassification", "BertConfig", IDS, LOGITS, **TEXT),
    "roberta": hugging("RobertaModel", "RobertaConfig", IDS, HIDDEN, **TEXT),
    "distilbert": hugging("DistilBertModel", "DistilBertConfig", IDS, HIDDEN, dim=8, n_layers=1, n_heads=2,
                          hidden_dim=16, vocab_size=20, max_position_embeddings=8),
    "albert": hugging("AlbertModel", "AlbertConfig", IDS, HIDDEN, **TEXT, embedding_size=8),
    "electra": hugging("ElectraModel", "ElectraConfig", IDS, HIDDEN, **TEXT, embedding_size=8),
    "deberta": hugging("DebertaModel", "DebertaConfig", IDS, HIDDEN, **TEXT),
    "gpt2": hugging("GPT2LMHeadModel", "GPT2Config", NO_CACHE, LOGITS, n_embd=8, n_layer=1, n_head=2, vocab_size=20,
                    n_positions=8, bos_token_id=1, eos_token_id=2),
    "gpt-neo": hugging("GPTNeoModel", "GPTNeoConfig", NO_CACHE, HIDDEN, hidden_size=8, num_layers=1, num_heads=2,
                       attention_types=[[["global"], 1]], vocab_size=20, max_position_embeddings=8, bos_token_id=1,
                       eos_token_id=2),
    "opt": hugging("OPTModel", "OPTConfig", NO_CACHE, HIDDEN, **{**TEXT, "ffn_dim": 16, "word_embed_proj_dim": 8}),
    "llama": hugging("LlamaForCausalLM", "LlamaConfig", NO_CACHE, LOGITS, **GROUPED),
    "mistral": hugging("MistralModel", "MistralConfig", NO_CACHE, HIDDEN, **GROUPED),
    "qwen2": hugging("Qwen2ForCausalLM", "Qwen2Config", NO_CACHE, LOGITS, **GROUPED, tie_word_embeddings=True),
    "gemma": hugging("GemmaModel", "GemmaConfig", NO_CACHE, HIDDEN, **GROUPED),
    "phi": hugging("PhiModel", "PhiConfig", NO_CACHE, HIDDEN, **TEXT),
    "mixtral": hugging("MixtralModel", "MixtralConfig", NO_CACHE, HIDDEN, **GROUPED, num_local_experts=2,
                       num_experts_per_tok=1),
    "falcon": hugging("FalconModel", "FalconConfig", NO_CACHE, HIDDEN, hidden_size=8, num_hidden_layers=1,
                      num_attention_heads=2, vocab_size=20, bos_token_id=1, eos_token_id=2),
    "t5": hugging("T5ForConditionalGeneration", "T5Config", BOTH, LOGITS, d_model=8, d_kv=4, d_ff=16, num_layers=1,
                  num_heads=2, vocab_size=20, **SPECIAL),
    "bart": hugging("BartModel", "BartConfig", BOTH, HIDDEN, **ENCODER_DECODER),
    "whisper": hugging(
        "WhisperModel", "WhisperConfig",
        {"input_features": torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1)),
         "decoder_input_ids": WORDS},
        HIDDEN, num_mel_bins=8, max_source_positions=4, max_target_positions=8,
        **{k: v for k, v in ENCODER_DECODER.items() if k != "max_position_embeddings"}),
    "mamba": hugging("MambaModel", "MambaConfig", NO_CACHE, HIDDEN, hidden_size=8, num_hidden_layers=1, vocab_size=20,
                     state_size=4),
    "vit": hugging("ViTForImageClassification", "ViTConfig", PIXELS, LOGITS, **PICTURE),
    "deit": hugging("DeiTModel", "DeiTConfig", PIXELS, HIDDEN, **PICTURE),
    "beit": hugging("BeitModel", "BeitConfig", PIXELS, HIDDEN, **PICTURE),
    "dinov2": hugging("Dinov2Model", "Dinov2Config", PIXELS, HIDDEN, **PICTURE),
    "swin": hugging("SwinModel", "SwinConfig", PIXELS, HIDDEN, image_size=16, patch_size=4, embed_dim=8,
                    depths=[1, 1], num_heads=[2, 2], window_size=2),
    "convnext": hugging("ConvNextModel", "ConvNextConfig", PIXELS, HIDDEN, hidden_sizes=[4, 8], depths=[1, 1],
                        num_stages=2),
    "resnet": hugging("ResNetModel", "ResNetConfig", PIXELS, HIDDEN, embedding_size=4, hidden_sizes=[4, 8],
                      depths=[1, 1], layer_type="basic"),
    "bit, standardised": hugging("BitModel", "BitConfig", PIXELS, HIDDEN, embedding_size=8, hidden_sizes=[8, 16],
                                 depths=[1, 1], num_groups=2),
    "regnet": hugging("RegNetModel", "RegNetConfig", PIXELS, HIDDEN, embedding_size=4, hidden_sizes=[4, 8],
                      depths=[1, 1], groups_width=4),
    "mobilenet": hugging("MobileNetV2Model", "MobileNetV2Config", PIXELS, HIDDEN, depth_multiplier=0.1, image_size=16),
    "segformer": hugging("SegformerModel", "SegformerConfig", PIXELS, HIDDEN, num_encoder_blocks=2, depths=[1, 1],
                         sr_ratios=[2, 1], hidden_sizes=[4, 8], patch_sizes=[3, 3], strides=[2, 2],
                         num_attention_heads=[1, 2], mlp_ratios=[2, 2]),
    "clip": hugging("CLIPModel", "CLIPConfig", {**IDS, **PIXELS}, "logits_per_image", text_config=CLIP_TEXT,
                    vision_config={**PICTURE, "projection_dim": 8}, projection_dim=8),
    "wav2vec2": hugging(
        "Wav2Vec2Model", "Wav2Vec2Config",
        {"input_values": torch.randn(2, 80, generator=torch.Generator().manual_seed(1))}, HIDDEN, **SIZES,
        conv_dim=[4, 4], conv_kernel=[5, 3], conv_stride=[3, 2], num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=20),
}  # fmt: skip

NODES = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 4]])


def graph(name: str, *args: Any, share: float = 0.6, given: dict | None = None, **options: Any) -> RealNet:
    """A network or layer of torch_geometric, by name."""

    def make() -> nn.Module:
        import torch_geometric.nn

        made = [one() if callable(one) else one for one in args]
        return getattr(torch_geometric.nn, name)(*made, **options)

    given = given or {}
    return RealNet(make, given, lambda output: output, share, "torch_geometric", (NODES, EDGES))


TYPES = {"edge_type": torch.tensor([0, 1, 2, 0, 1, 2, 0])}
GRAPHS = {
    "gcn": graph("GCN", 4, 8, 2, 3),
    "gat": graph("GAT", 4, 8, 2, 3, share=0.5),
    "gat v2": graph("GATv2Conv", 4, 4, heads=2),
    "sage": graph("GraphSAGE", 4, 8, 2, 3),
    "gin": graph("GIN", 4, 8, 2, 3),
    "pna-like edge convolution": graph("EdgeConv", functools.partial(nn.Linear, 8, 4)),
    "rgcn": graph("RGCNConv", 4, 8, 3, given=TYPES),
    "gated graph": graph("GatedGraphConv", 4, 2),
    "chebyshev": graph("ChebConv", 4, 8, 3),
    "arma": graph("ARMAConv", 4, 8, num_stacks=2),
    "transformer convolution": graph("TransformerConv", 4, 8),
    "film": graph("FiLMConv", 4, 8),
    "tag": graph("TAGConv", 4, 8),
}


def lora(dora: bool) -> RealNet:
    def make() -> nn.Module:
        import peft

        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        return peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"], use_dora=dora))

    return RealNet(make, {}, lambda output: output, package="peft", args=(NODES,))


CATALOGUE = {**TRANSFORMERS, **GRAPHS, "lora": lora(False), "dora": lora(True)}
