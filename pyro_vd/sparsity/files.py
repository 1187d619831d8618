"""Files of pruned nets: safetensors with gaps and values in the place of zeros."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_vd.common.extras import imported
from pyro_vd.sparsity.prune import remove_masks

# Of a tensor "name" that is stored sparse: gaps between the nonzero elements, their values, sizes.
PARTS = (".sparse_gaps", ".sparse_values", ".sparse_shape")
NIBBLES = ".sparse_nibbles"  # in the place of gaps: two of them in a byte
INDICES = ".sparse_indices"  # in the place of gaps in files of version 0.1.0
GAPS = (torch.uint8, torch.uint16)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def save_sparse(net: nn.Module, path: str | Path) -> int:
    """Write the parameters and buffers of a net to a safetensors file, each as its nonzero elements where that is less.

    The place of a nonzero element is the number of zeros before it, since the last one, in half a byte, one or two,
    whichever takes least. The largest number, 255 say, stands for as many zeros and no element. A plain script reads
    the file, without this library::

        held = safetensors.torch.load_file(path)
        for key in [key for key in held if key.endswith((".sparse_gaps", ".sparse_nibbles"))]:
            name, _, part = key.rpartition(".sparse_")
            gaps, values, shape = (held.pop(f"{name}.sparse_{one}") for one in (part, "values", "shape"))
            most = 15 if part == "nibbles" else torch.iinfo(gaps.dtype).max
            zeros = (torch.stack([gaps & 15, gaps >> 4], 1).flatten() if most == 15 else gaps).long()
            places = (zeros + (zeros < most)).cumsum(0)[zeros < most] - 1
            flat = torch.zeros(shape.prod(), dtype=values.dtype).index_copy(0, places, values)
            held[name] = flat.reshape(shape.tolist())
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
    """
    files = imported("safetensors.torch", "safetensors", "save_sparse")
    held: dict[str, Tensor] = {}
    for name, tensor in remove_masks(net).state_dict().items():
        if name.endswith((*PARTS, NIBBLES, INDICES)):
            raise ValueError(
                f"save_sparse: expected names that do not end in one of {(*PARTS, NIBBLES, INDICES)}, got {name!r}; "
                "rename it"
            )
        tensor = tensor.detach().cpu().contiguous()
        flat = tensor.flatten()
        # Of one byte: PyTorch has no nonzero() of it. A zero with a sign is kept, as what it is.
        places = (flat.view(torch.uint8) if flat.dtype in _FLOAT8 else flat).nonzero()[:, 0]
        found = [(PARTS[0], _gaps(places, dtype)) for dtype in GAPS] + [(NIBBLES, _paired(_gaps(places, most=15)))]
        part, gaps = min(found, key=lambda one: one[1].nbytes)
        if gaps.nbytes + len(places) * flat.element_size() + 8 * tensor.dim() >= flat.nbytes:
            held[name] = tensor.clone()
        else:
            shape = torch.tensor(tensor.shape, dtype=torch.int64)
            held |= dict(zip([name + one for one in (part, *PARTS[1:])], (gaps, flat[places], shape), strict=True))
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
    """
    held = imported("safetensors.torch", "safetensors", "save_sparse").load_file(path)
    places = (PARTS[0], NIBBLES, INDICES)
    for name in [found.removesuffix(PARTS[1]) for found in held if found.endswith(PARTS[1])]:
        if not any(name + part in held for part in places):
            raise ValueError(f"load_sparse: expected {name!r} in parts {PARTS}, got none of {places}; write it again")
    for key in [found for found in held if found.endswith(places)]:
        name = key.rpartition(".")[0]
        missing = [name + part for part in PARTS[1:] if name + part not in held]
        if missing:
            raise ValueError(f"load_sparse: expected {name!r} in parts {PARTS}, got none of {missing}; write it again")
        told, values, shape = (held.pop(part) for part in (key, name + PARTS[1], name + PARTS[2]))
        kind = values.dtype
        dense = torch.zeros(torch.Size(shape.tolist()), dtype=kind).flatten()
        indices = told.long() if key.endswith(INDICES) else _places(told, key.endswith(NIBBLES))
        if len(indices) != len(values) or (
            len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(dense)
        ):
            raise ValueError(
                f"load_sparse: {name!r}: expected as many indices below {len(dense)} as values, got {len(indices)} and "
                f"{len(values)}; write it again"
            )
        if values.dtype in _FLOAT8:
            dense, values = dense.view(torch.uint8), values.view(torch.uint8)
        held[name] = dense.index_copy(0, indices, values).view(kind).reshape(shape.tolist())
    return held
