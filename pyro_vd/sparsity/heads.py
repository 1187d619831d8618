"""Attention without its dead heads."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vd.sparsity.replaced import replace_layers


class FewerHeads(nn.MultiheadAttention):
    """The given heads of a ``MultiheadAttention``: the same function where the others give a constant.

    The weights of the attention are not returned: their average would be over fewer heads.

    Args:
        attention: the layer whose parameters are taken over, without ``bias_k``, ``bias_v`` and ``add_zero_attn``.
        heads: the numbers of those that stay.

    Example:
        >>> layer = FewerHeads(nn.MultiheadAttention(8, 4, batch_first=True), [0, 2])
        >>> layer(*3 * [torch.ones(1, 3, 8)])[0].shape, layer.in_proj_weight.shape, layer.out_proj.weight.shape
        (torch.Size([1, 3, 8]), torch.Size([12, 8]), torch.Size([8, 4]))
    """

    def __init__(self, attention: nn.MultiheadAttention, heads: Sequence[int]):
        super().__init__(
            attention.embed_dim, attention.num_heads, attention.dropout, attention.in_proj_bias is not None,
            kdim=attention.kdim, vdim=attention.vdim, batch_first=attention.batch_first, device="meta",
        )  # fmt: skip
        self.heads = tuple(heads)
        self._qkv_same_embed_dim = False  # the fast path of TransformerEncoderLayer knows whole layers only
        shape = (attention.num_heads, attention.head_dim)
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            parameter = getattr(attention, name)
            if parameter is not None:
                rows = parameter.detach().unflatten(0, (-1, *shape))[:, heads].flatten(0, 2).clone()
                setattr(self, name, nn.Parameter(rows, parameter.requires_grad))
        self.out_proj = copy.deepcopy(attention.out_proj)
        columns = self.out_proj.weight.detach().unflatten(1, shape)[:, heads].flatten(1).clone()
        self.out_proj.weight = nn.Parameter(columns, attention.out_proj.weight.requires_grad)
        self.out_proj.in_features = columns.shape[1]
        self.train(attention.training)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if is_causal and attn_mask is None:
            raise ValueError("is_causal: expected attn_mask beside it, got None; pass the mask")
        inputs, one = (query, key, value), query.dim() == 2
        if one or not self.batch_first:
            inputs = tuple(x[None] if one else x.transpose(0, 1) for x in inputs)
        packed = self.in_proj_weight is not None
        weights = (
            self.in_proj_weight.chunk(3) if packed else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, query)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output[0] if one else output if self.batch_first else output.transpose(0, 1), None

    def extra_repr(self) -> str:
        return f"heads={self.heads} of {self.num_heads}"

    def _mask(self, attention: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
        """Both masks as one that is added to the logits, of shape (batch or 1, heads or 1, queries or 1, keys)."""
        masks = []
        if attention is not None:
            by_head = attention.dim() == 3  # of shape (batch * heads, queries, keys)
            masks.append(attention.unflatten(0, (-1, self.num_heads))[:, list(self.heads)] if by_head else attention)
        if padding is not None:
            masks.append((padding[None] if padding.dim() == 1 else padding)[:, None, None])
        added = [
            mask.to(query.dtype)
            if mask.dtype != torch.bool
            else torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -torch.inf)
            for mask in masks
        ]
        return sum(added[1:], added[0]) if added else None


@torch.no_grad()
def without_dead_heads(net: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of a net whose ``MultiheadAttention`` layers have no dead heads, and the names of those that keep one.

    A head is dead where its columns of the output projection are zero, or its rows of the values'. What those give is
    their bias, whatever is attended to, and goes into the bias of the output.
    """
    net = copy.deepcopy(net)
    holders = WeakTensorKeyDictionary()  # parameter -> how many layers hold it
    for layer in net.modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                holders[parameter] = (holders.get(parameter) or 0) + 1
    empty, replaced = [], {}
    for path, layer in net.named_modules():
        if type(layer) is not nn.MultiheadAttention or layer.bias_k is not None or layer.add_zero_attn:
            continue
        live, constant = _live(layer)
        if live.all() or any(holders[parameter] > 1 for parameter in layer.parameters()):
            continue
        if not live.any():
            empty.append(path)
            live[0] = True
            constant[0] = 0.0
        replaced[path] = fewer = FewerHeads(layer, live.nonzero()[:, 0].tolist())
        if fewer.out_proj.bias is not None:
            fewer.out_proj.bias.add_(layer.out_proj.weight @ constant.flatten())
    net = replace_layers(net, replaced)
    for layer in net.modules():
        if replaced and isinstance(layer, nn.TransformerEncoder):
            layer.enable_nested_tensor = layer.use_nested_tensor = False
    return net, empty


def _live(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """Which heads depend on the inputs and are read, and what the others that are read give, of shape (heads, size)."""
    shape = (attention.num_heads, attention.head_dim)
    values, bias = attention.v_proj_weight, attention.in_proj_bias
    values = attention.in_proj_weight.chunk(3)[2] if values is None else values
    read = (attention.out_proj.weight != 0).any(0).unflatten(0, shape).any(1)
    fed = (values != 0).any(1).unflatten(0, shape).any(1)
    given = values.new_zeros(shape) if bias is None else bias.detach().chunk(3)[2].unflatten(0, shape)
    return read & fed, torch.where((read & ~fed)[:, None], given, 0.0)
