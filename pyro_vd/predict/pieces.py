"""What is kept of runs of a model, put together: blocks of draws, and pieces of the examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vd.predict.posteriors import are_equal

# What is kept of a site: its structure and tensors. Of several draws each tensor has the draws first.
Parts = dict[str, tuple[Any, list[Tensor]]]


def as_one_draw(parts: Parts) -> Parts:
    """Parts of one run, with an axis of draws."""
    return {name: (structure, [t.unsqueeze(0) for t in own]) for name, (structure, own) in parts.items()}


def differ(first: Parts, second: Parts) -> bool:
    """Whether two draws are not the same: other sites, families or numbers."""
    if first.keys() != second.keys():
        return True
    pairs = ((first[site], second[site]) for site in first)
    return any(a[0] != b[0] or not all(map(torch.equal, a[1], b[1])) for a, b in pairs)


def joined(blocks: list[Parts], dim: int, together: Callable[..., Tensor]) -> Parts:
    """Blocks side by side along an axis.

    Args:
        blocks: what is kept of each.
        dim: 0 for draws, 1 for examples.
        together: tensors and an axis -> one tensor.

    Raises:
        ValueError: a site that is not in all of them, or has another family or shape.
    """
    whole: Parts = {}
    for name in dict.fromkeys(name for block in blocks for name in block):
        parts = [block[name] for block in blocks if name in block]
        if len(parts) < len(blocks):
            raise ValueError(
                f"site {name!r}: expected the same sites in every draw and piece, got it in {len(parts)} of "
                f"{len(blocks)}; sample it always, and mask what does not count"
            )
        structure, tensors = parts[0]
        for other, own in parts[1:]:
            if other != structure or not all(map(_fit, tensors, own, [dim] * len(own))):
                raise ValueError(
                    f"site {name!r}: expected the same family and shape in every draw and piece, got tensors of "
                    f"shapes {[tuple(t.shape) for t in tensors]} and {[tuple(t.shape) for t in own]} of "
                    f"{structure} and {other}"
                )
        whole[name] = structure, [together(same, dim) for same in zip(*(own for _, own in parts), strict=True)]
    return whole


def pieces_joined(pieces: list[Parts], along: dict[str, bool], together: Callable[..., Tensor]) -> Parts:
    """Pieces of the examples as one.

    Args:
        pieces: what is kept of each, the draws first.
        along: whether the examples of a site lie along its first axis.
        together: as in :func:`joined`.

    Raises:
        ValueError: a site that is not in every piece, or has no examples and another value in another piece.
    """
    if len(pieces) == 1:
        return pieces[0]
    whole = {name for piece in pieces for name in piece if not along.get(name)}
    for name in sorted(whole):
        ours = [piece.get(name) for piece in pieces]
        present = [one for one in ours if one is not None]
        if len(present) < len(ours):
            raise ValueError(
                f"site {name!r}: expected the same sites in every piece of the examples, got it in {len(present)} of "
                f"{len(ours)} pieces; leave batch_size out"
            )
        first, *others = present
        if any(one[0] != first[0] or not all(map(are_equal, first[1], one[1])) for one in others):
            raise ValueError(
                f"site {name!r}: expected a value for every example, along its first axis, or one that is the same in "
                f"every piece of the examples, got shape {tuple(first[1][0].shape[1:])} and other values in other "
                "pieces; leave batch_size out"
            )
    cut = [{name: parts for name, parts in piece.items() if name not in whole} for piece in pieces]
    return {name: pieces[0][name] for name in pieces[0] if name in whole} | joined(cut, 1, together)


def _fit(a: Tensor, b: Tensor, dim: int) -> bool:
    return a.shape[:dim] + a.shape[dim + 1 :] == b.shape[:dim] + b.shape[dim + 1 :]
