"""Files of earlier versions, in which a sparse tensor is in parts that are tensors of their own."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# A tensor "name" of 2 x 3 that is stored sparse is "name.sparse_gaps.2x3" or "name.sparse_nibbles.2x3" (two gaps in a
# byte), the zeros between its nonzero elements, and "name.sparse_values". The largest gap that can be said stands for
# as many zeros and no element. Files of version 0.1.0 have indices in the place of gaps, and the sizes in a tensor
# "name.sparse_shape"; those of gaps with such a tensor are read, too.
NIBBLES = "nibbles"
PLACES = re.compile(r"(.*)\.sparse_(gaps|nibbles|indices)(?:\.(\d+(?:x\d+)*))?", re.DOTALL)
VALUES, SHAPE = ".sparse_values", ".sparse_shape"


def joined(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a file, dense; those that are in no parts as they are.

    Raises:
        ValueError: a part of a tensor is missing, or says otherwise than the rest.
    """
    found = [match for key in held if (match := PLACES.fullmatch(key))]
    told = {match[1] for match in found}
    for name in [key.removesuffix(VALUES) for key in held if key.endswith(VALUES)]:
        if name not in told:
            raise ValueError(
                f"load_sparse: expected {name!r} in parts, got values without .sparse_gaps.SIZES, "
                ".sparse_nibbles.SIZES or .sparse_indices, SIZES like 300x784; write it again"
            )
    for match in found:
        name, part, sizes = match.groups()
        missing = [name + one for one in ((VALUES,) if sizes else (VALUES, SHAPE)) if name + one not in held]
        if missing:
            raise ValueError(f"load_sparse: expected {name!r} in parts, got none of {missing}; write it again")
        gaps, values = held.pop(match[0]), held.pop(name + VALUES)
        shape = [int(size) for size in sizes.split("x")] if sizes else held.pop(name + SHAPE).tolist()
        kind = values.dtype
        dense = torch.zeros(torch.Size(shape), dtype=kind).flatten()
        indices = gaps.long() if part == "indices" else _places(gaps, part == NIBBLES)
        if len(indices) != len(values) or (
            len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(dense)
        ):
            raise ValueError(
                f"load_sparse: {name!r}: expected as many indices below {len(dense)} as values, got {len(indices)} and "
                f"{len(values)}; write it again"
            )
        if kind.itemsize == 1:
            dense, values = dense.view(torch.uint8), values.view(torch.uint8)
        held[name] = dense.index_copy(0, indices, values).view(kind).reshape(shape)
    return held


def _places(gaps: Tensor, paired: bool = False) -> Tensor:
    """The places of the nonzero elements."""
    most = 15 if paired else torch.iinfo(gaps.dtype).max
    zeros = (torch.stack([gaps & 15, gaps >> 4], 1).flatten() if paired else gaps).long()
    return (zeros + (zeros < most)).cumsum(0)[zeros < most] - 1
