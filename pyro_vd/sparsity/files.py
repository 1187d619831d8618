"""Files of pruned nets: safetensors of the nonzero values end to end, and of their places in bits."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vd.common.checkpoint_file import write_whole
from pyro_vd.common.extras import imported
from pyro_vd.common.options import check_path, kind_of
from pyro_vd.sparsity.parts import joined
from pyro_vd.sparsity.places import decode, encode, pack, unpack
from pyro_vd.sparsity.prune import remove_masks

# The metadata have, as JSON, the tensors of each dtype in the order of their values: [name, sizes] of one that is
# stored whole, [name, sizes, values, k] of one whose places are in the bits; see places.py. The last four bytes of the
# places are a CRC-32 of the metadata, the values and the other places.
TOLD, PLACES = "pyro_vd", "places"
CHECKSUM = 4  # bytes
ENTRY = 8  # bytes in the header of a sparse tensor more than of a whole one, about
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def save_sparse(net: nn.Module, path: str | Path) -> int:
    """Write the parameters and buffers of a net to a safetensors file, each as its nonzero elements where that is less.

    The values of all tensors of a dtype are end to end. The place of a nonzero element is the number of zeros before
    it, since the last one, in the code of Rice: ``k`` low bits as they are, and the rest in unary, with the best ``k``
    for each tensor. A plain script reads the file, without this library::

        import json
        with safetensors.safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["pyro_vd"])
            stored = {key: file.get_tensor(key) for key in file.keys()}
        bits = (stored["places"][:, None] >> torch.arange(8, dtype=torch.uint8)).flatten() & 1
        held = {}
        for dtype, tensors in told.items():
            values = stored[dtype]
            for name, shape, *sparse in tensors:
                size = torch.Size(shape).numel()
                count, k = sparse or (size, 0)
                flat, values = values[:count], values[count:]
                if sparse:
                    ones = bits[: count + (size >> k)].nonzero()[:count, 0]  # the ends of the numbers in unary
                    bits = bits[int(ones[-1]) + 1 if count else 0 :]
                    low = (bits[: count * k].reshape(count, k).long() << torch.arange(k)).sum(1)
                    bits, order = bits[count * k :], torch.arange(count)
                    places = ((ones - order) << k) + low.cumsum(0) + order
                    flat = torch.zeros(size, dtype=flat.dtype).index_copy(0, places, flat)
                held[name] = flat.reshape(shape)
        net.load_state_dict(held)

    Args:
        net: any torch module; masks of ``torch.nn.utils.prune`` are made permanent in what is written.
        path: of the file.

    Returns:
        The size of the file in bytes.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: ``net`` is no torch module, or is a BayesianModule; its state has something else than dense tensors,
            or a dtype that safetensors has not.
        ValueError: a tensor without values, on the meta device.
        OSError: the file cannot be written; what was there stays.

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
    check_path(path, "save_sparse")
    files = imported("safetensors.torch", "safetensors", "save_sparse")
    told: dict[str, list[list]] = {}
    values: dict[str, list[Tensor]] = {}
    bits: dict[str, list[Tensor]] = {}  # of each dtype too, since a reader takes one dtype after the other
    for name, tensor in remove_masks(net, "save_sparse").state_dict().items():
        flat = _checked(name, tensor).cpu().flatten()
        raw, entry = _raw(flat), [name, list(tensor.shape)]
        kind, places = str(flat.dtype).removeprefix("torch."), raw.nonzero()[:, 0]
        codes = bits.setdefault(kind, [])
        if (own := len(places) * raw.element_size() + ENTRY) < raw.nbytes:
            k, code = encode(places)
            if own + len(code) / 8 < raw.nbytes:
                raw, entry = raw[places], [*entry, len(places), k]
                codes.append(code)
        told.setdefault(kind, []).append(entry)
        values.setdefault(kind, []).append(raw)
    held = {kind: torch.cat(found).view(getattr(torch, kind)) for kind, found in values.items()}
    held[PLACES] = pack(torch.cat([torch.zeros(0, dtype=torch.uint8), *(one for of in bits.values() for one in of)]))
    text = json.dumps(told, separators=(",", ":"))
    held[PLACES] = torch.cat([held[PLACES], _checksum(text, held)])
    try:
        content = files.save(held, {TOLD: text})
    except KeyError as error:
        raise TypeError(
            f"save_sparse: expected tensors of dtypes that safetensors can store, got {error} in {list(told)}; write "
            "torch.save(net.state_dict(), path)"
        ) from error
    try:
        write_whole(path, content)
    except OSError as error:
        raise OSError(f"save_sparse: expected a path that can be written, got {str(path)!r}: {error}") from error
    return Path(path).stat().st_size


def _checksum(text: str, stored: dict[str, Tensor]) -> Tensor:
    found = zlib.crc32(text.encode())
    for _, tensor in sorted(stored.items()):
        found = zlib.crc32(tensor.view(torch.uint8).numpy().data, found)
    return torch.tensor(list(found.to_bytes(CHECKSUM, "little")), dtype=torch.uint8)


def _checked(name: str, tensor: Any) -> Tensor:
    """A tensor of a state dict, detached, or an error that names it."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        found = tensor.layout if type(tensor) is Tensor else kind_of(tensor)
        raise TypeError(
            f"save_sparse: {name!r}: expected a dense tensor, got {found}; write torch.save(net.state_dict(), path)"
        )
    if tensor.is_meta:
        raise ValueError(f"save_sparse: {name!r}: expected values, got a tensor on the meta device; load the net first")
    return tensor.detach()


def _raw(flat: Tensor) -> Tensor:
    """The same bytes as a type that PyTorch finds nonzero elements of; a zero of one byte with a sign is kept."""
    return flat.view(torch.uint8 if flat.element_size() == 1 else _SIGNED.get(flat.dtype, flat.dtype))


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of :func:`save_sparse`, dense. Files of earlier versions are read, too.

    Args:
        path: of the file.

    Returns:
        ``{name: tensor}`` for ``load_state_dict``.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: another file, a truncated or changed one; parts of a tensor are missing, or say otherwise than the
            rest.
        OSError: the file cannot be read.

    Example:
        See :func:`save_sparse`.

    See also:
        :func:`pyro_vd.save_sparse`.
    """
    check_path(path, "load_sparse")
    files = imported("safetensors", "safetensors", "load_sparse")
    try:
        with files.safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(TOLD)
            held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  of safetensors, no dict
    except files.SafetensorError as error:
        raise ValueError(
            f"load_sparse: expected a file of save_sparse, got {str(path)!r}, which is another or a truncated one "
            f"({error}); write it again, or load it with what wrote it"
        ) from error
    if told is None:
        return joined(held)
    try:
        return _spread(held, told)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"load_sparse: expected {str(path)!r} as save_sparse writes it, got tensors that are not those which its "
            f"metadata tell of ({error}); write it again"
        ) from error


def _spread(stored: dict[str, Tensor], text: str) -> dict[str, Tensor]:
    """The dense tensors of a file."""
    told: dict[str, list[list]] = json.loads(text)
    bits, held = unpack(stored[PLACES]), {}
    if stored.keys() != {PLACES, *told}:
        raise ValueError(f"expected tensors {[PLACES, *told]}, got {list(stored)}")
    for kind, tensors in told.items():
        dtype, values = getattr(torch, kind), _raw(stored[kind])
        if stored[kind].dtype != dtype:
            raise ValueError(f"{kind!r}: expected values of this dtype, got {stored[kind].dtype}")
        for name, shape, *sparse in tensors:
            size = math.prod(shape)
            count, k = sparse or (size, 0)
            if name in held or not 0 <= k < 64 or min([count, *shape], default=0) < 0:
                raise ValueError(f"{name!r}: expected one tensor with sizes, values and bits, got {shape}, {sparse}")
            flat, values = values[:count], values[count:]
            if len(flat) != count:
                raise ValueError(f"{name!r}: expected {count} values, got {len(flat)}")
            if sparse:
                places, used = decode(bits, size, count, k)
                if len(places) != count or (count and places[-1] >= size):
                    raise ValueError(f"{name!r}: expected {count} places below {size}, got {len(places)}")
                flat, bits = torch.zeros(size, dtype=flat.dtype).index_copy(0, places, flat), bits[used:]
            held[name] = flat.view(dtype).reshape(shape).clone()
        if len(values):
            raise ValueError(f"{len(values)} values of {kind} are left")
    left, rest = divmod(len(bits), 8)
    if left not in (0, CHECKSUM) or bits[:rest].any():  # 0: written before there was a checksum
        raise ValueError(f"{len(bits)} bits of places are left")
    if left:
        places, checksum = stored[PLACES].tensor_split([-CHECKSUM])
        if not torch.equal(checksum, _checksum(text, {**stored, PLACES: places})):
            raise ValueError("values, places or names with another checksum")
    return held
