"""Elements of a parameter that a layer keeps fixed: padding rows of embeddings, masked elements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_vd.estimators import WeightNoise


@dataclass(frozen=True)
class Fixed:
    """Elements of a weight that are constants.

    Attributes:
        mask: True where an element is fixed; broadcasts with the weight.
        value: what those elements are; broadcasts with the weight.
    """

    mask: Tensor
    value: Tensor | float

    def imposed_on(self, weight: Tensor) -> Tensor:
        """The weight with the constants in their places."""
        return torch.where(self.mask, self.value, weight)

    def zero_in(self, quantity: Tensor) -> Tensor:
        """A quantity of the shape of the weight, 0 where the weight is fixed."""
        return torch.where(self.mask, 0.0, quantity)


def fixed_elements(owners: Iterable[tuple[nn.Module, str]], row: int | None = None) -> Fixed | None:
    """What all the layers that hold a parameter keep fixed of it; None where that is nothing.

    That is the row ``padding_idx`` of Embedding and EmbeddingBag, at its present value, and what
    ``torch.nn.utils.prune`` has masked, which is 0. A row that another layer uses too, a head that is tied to an
    embedding, is trained there.

    Args:
        owners: the modules that hold the parameter, each with the name under which it does.
        row: one that is fixed at its present value besides, by the code of the net.
    """
    owners = list(owners)
    fixed = _fixed_by_all(owners)
    if row is None or not owners:
        return fixed
    module, key = owners[0]
    own: Tensor = module._parameters[key].detach()  # type: ignore[union-attr]
    rows = torch.arange(len(own), device=own.device).view(-1, *[1] * (own.dim() - 1))
    mask = rows == row % len(own)
    return Fixed(mask, own) if fixed is None else Fixed(mask | fixed.mask, fixed.imposed_on(own))


def _fixed_by_all(owners: list[tuple[nn.Module, str]]) -> Fixed | None:
    known: list[Fixed] = []
    for module, key in owners:
        if not (key.endswith("_orig") or isinstance(module, (nn.Embedding, nn.EmbeddingBag))):
            return None
        one = _fixed_by(module, key)
        if one is None:
            return None
        known.append(one)
    if not known:
        return None
    mask = known[0].mask
    for other in known[1:]:
        mask = mask & other.mask
    return Fixed(mask, known[0].value)


def _fixed_by(module: nn.Module, key: str) -> Fixed | None:
    mask = module._buffers.get(f"{key.removesuffix('_orig')}_mask")
    if key.endswith("_orig") and mask is not None:
        return Fixed(mask == 0, 0.0)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
        rows = torch.arange(module.num_embeddings, device=module.weight.device)
        return Fixed((rows == module.padding_idx).unsqueeze(-1), module.weight.detach())
    return None


def pinned(noise: WeightNoise, mask: Tensor, value: Tensor | float) -> WeightNoise:
    """The noise of a weight whose elements under ``mask`` are the constants ``value``."""

    def without(part: Tensor | None) -> Tensor | None:
        return None if part is None else torch.where(mask, 0.0, part)

    def draw(sample_shape: torch.Size) -> Tensor:
        return torch.where(mask, value, noise.draw(sample_shape))

    loc, constant = torch.where(mask, value, noise.loc), None
    if noise.draw_units is not None:
        constant = torch.where(mask, value, torch.zeros_like(noise.loc))
        loc = torch.where(mask, 0.0, noise.loc)
    variance, factor = without(noise.variance), without(noise.factor)
    return WeightNoise(loc, variance, draw, noise.unit_dim, noise.draw_units, factor, constant, is_pinned=True)
