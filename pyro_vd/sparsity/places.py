"""Places of nonzero elements in bits: the code of Rice, which is close to the entropy of places at random.

A gap is the number of zeros between a nonzero element and the one before. Of each gap the ``k`` low bits are written as
they are, and the rest, ``gap >> k``, as so many zeros and a one. With ``k = 0`` that is a bit for every element.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = torch.arange(8, dtype=torch.uint8)


def encode(places: Tensor) -> tuple[int, Tensor]:
    """``k``, the one that needs least, and the bits: the high parts of all gaps, and then the low ones.

    Args:
        places: of the nonzero elements, int64, ascending.

    Returns:
        ``k``, and zeros and ones of uint8.
    """
    gaps = places.diff(prepend=places.new_full((1,), -1)) - 1
    most = int(gaps.max()).bit_length() if len(gaps) else 0
    k = min(range(most + 1), key=lambda k: k * len(gaps) + int((gaps >> k).sum()))
    high = gaps >> k
    unary = torch.zeros(len(gaps) + int(high.sum()), dtype=torch.uint8)
    unary[high.cumsum(0) + torch.arange(len(gaps))] = 1
    low = ((gaps[:, None] >> torch.arange(k)) & 1).to(torch.uint8)
    return k, torch.cat([unary, low.flatten()])


def decode(bits: Tensor, size: int, count: int, k: int) -> tuple[Tensor, int]:
    """The places, at most ``count`` of them, among ``size`` elements, and how many of the bits they took."""
    ones = bits[: count + (size >> k)].nonzero()[:count, 0]
    first = int(ones[-1]) + 1 if len(ones) else 0
    low = bits[first : first + k * len(ones)]
    if len(low) < k * len(ones):
        return ones[:0], len(bits)
    low = (low.reshape(len(ones), k).long() << torch.arange(k)).sum(1)
    order = torch.arange(len(ones))
    return ((ones - order) << k) + low.cumsum(0) + order, first + k * len(ones)


def pack(bits: Tensor) -> Tensor:
    """Eight bits to a byte, the first the lowest; the last byte is filled with zeros."""
    return (torch.nn.functional.pad(bits, (0, -len(bits) % 8)).reshape(-1, 8) << BITS).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """The bits of bytes."""
    return (packed[:, None] >> BITS).flatten() & 1
