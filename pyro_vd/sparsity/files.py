"""Files of pruned nets: safetensors with gaps and values in the place of zeros."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_vd.common.extras import imported
from pyro_vd.sparsity.prune import remove_masks

# A tensor "name" of 2 x 3 that is stored sparse is "name.sparse_gaps.2x3" or "name.sparse_nibbles.2x3" (two gaps in a
# byte), the zeros between its nonzero elements, and "name.sparse_values". Files of version 0.1.0 have indices in the
# place of gaps, and the sizes in a tensor "name.sparse_shape"; those of gaps with such a tensor are read, too.
NIBBLES = "nibbles"
PLACES = re.compile(r"(.*)\.sparse_(gaps|nibbles|indices)(?:\.(\d+(?:x\d+)*))?", re.DOTALL)
VALUES, SHAPE = ".sparse_values", ".sparse_shape"
ENTRY = 80  # bytes of another tensor in the header of a file, about
GAPS = (torch.uint8, torch.uint16)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def save_sparse(net: nn.Module, path: str | Path) -> int:
    """Write the parameters and buffers of a net to a safetensors file, each as its nonzero elements where that is less.

    The place of a nonzero element is the number of zeros before it, since the last one, in half a byte, one or two,
    whichever takes least. The largest number, 255 say, stands for as many zeros and no element. A plain script reads
    the file, without this library::

        held = safetensors.torch.load_file(path)
        for key in [key for key in held if ".sparse_gaps." in key or ".sparse_nibbles." in key]:
            name, part, sizes = key.rsplit(".", 2)
            gaps, values, shape = held.pop(key), held.pop(f"{name}.sparse_values"), [int(n) for n in sizes.split("x")]
            most = 15 if part == "sparse_nibbles" else torch.iinfo(gaps.dtype).max
            zeros = (torch.stack([gaps & 15, gaps >> 4], 1).flatten() if most == 15 else gaps).long()
            places = (zeros + (zeros < most)).cumsum(0)[zeros < most] - 1
            flat = torch.zeros(torch.Size(shape).numel(), dtype=values.dtype).index_copy(0, places, values)
            held[name] = flat.reshape(shape)
        net.load_state_dict(held)

    Args:
        net: any torch module; masks of ``torch.nn.utils.prune`` are made permanent in what is written.
        path: of the file.

    Returns:
        The size of the file in bytes.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: a tensor with a name that ends like a part of another.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(100, 100)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.eye(100))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_sparse(net, f"{folder}/net.safetensors")
        ...     state = load_sparse(f"{folder}/net.safetensors")
        >>> size < 2000, torch.equal(state["weight"], torch.eye(100))
        (True, True)

    See also:
        :func:`pyro_vd.load_sparse`, :func:`pyro_vd.prune`.
    """
    files = imported("safetensors.torch", "safetensors", "save_sparse")
    held: dict[str, Tensor] = {}
    for name, tensor in remove_masks(net).state_dict().items():
        if PLACES.fullmatch(name) or name.endswith((VALUES, SHAPE)):
            raise ValueError(
                "save_sparse: expected names that do not end like a part of a sparse tensor (.sparse_gaps, "
                f"_nibbles, _indices, _values, _shape), got {name!r}; rename it"
            )
        tensor = tensor.detach().cpu().contiguous()
        flat = tensor.flatten()
        # Of one byte: PyTorch has no nonzero() of it. A zero with a sign is kept, as what it is.
        places = (flat.view(torch.uint8) if flat.dtype in _FLOAT8 else flat).nonzero()[:, 0]
        found = [("gaps", _gaps(places, dtype)) for dtype in GAPS] + [(NIBBLES, _paired(_gaps(places, most=15)))]
        part, gaps = min(found, key=lambda one: one[1].nbytes)
        if gaps.nbytes + len(places) * flat.element_size() + ENTRY >= flat.nbytes:
            held[name] = tensor.clone()
        else:
            held |= {f"{name}.sparse_{part}.{'x'.join(map(str, tensor.shape))}": gaps, name + VALUES: flat[places]}
    files.save_file(held, path)
    return Path(path).stat().st_size


def _gaps(places: Tensor, dtype: torch.dtype = torch.uint8, most: int = 0) -> Tensor:
    """The zeros before each place, since the last one; ``most`` (0: what ``dtype`` can say) are told by that number."""
    most = most or torch.iinfo(dtype).max
    zeros = places.diff(prepend=places.new_full((1,), -1)) - 1
    told = torch.full((len(places) + int((zeros // most).sum()),), most)
    told[torch.arange(len(places)) + (zeros // most).cumsum(0)] = zeros % most
    return told.to(dtype)


def _paired(gaps: Tensor) -> Tensor:
    """Two gaps in a byte; the last is beside one that says no element."""
    low, high = nn.functional.pad(gaps, (0, len(gaps) % 2), value=15).unflatten(0, (-1, 2)).unbind(1)
    return low | (high << 4)


def _places(gaps: Tensor, paired: bool = False) -> Tensor:
    """The places of the nonzero elements."""
    most = 15 if paired else torch.iinfo(gaps.dtype).max
    zeros = (torch.stack([gaps & 15, gaps >> 4], 1).flatten() if paired else gaps).long()
    return (zeros + (zeros < most)).cumsum(0)[zeros < most] - 1


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of :func:`save_sparse`, dense.

    Args:
        path: of the file.

    Returns:
        ``{name: tensor}`` for ``load_state_dict``.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: a part of a tensor is missing, or says otherwise than the rest.

    Example:
        See :func:`save_sparse`.

    See also:
        :func:`pyro_vd.save_sparse`.
    """
    held = imported("safetensors.torch", "safetensors", "save_sparse").load_file(path)
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
        if kind in _FLOAT8:
            dense, values = dense.view(torch.uint8), values.view(torch.uint8)
        held[name] = dense.index_copy(0, indices, values).view(kind).reshape(shape)
    return held
