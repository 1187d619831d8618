"""A checkpoint as a file: written whole or not at all, and read only if it is whole. No array library is needed.

The file is one of safetensors. Its metadata hold the state as JSON, in which tensors stand by name, and the SHA-256 of
the whole file with 64 zeros in the place of the digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_vd.common.options import check_path

_BLANK = "0" * 64
_DICTS: dict[str, type] = {"dict": dict, "counter": Counter, "ordered": OrderedDict}


def encode(value: Any, keep: Callable[[Any, str], str | None], where: str) -> Any:
    """The value as JSON; ``keep`` gives the name under which a tensor is stored, None for what is none.

    A number of NumPy comes back as one of Python.

    Raises:
        TypeError: a value of another type than tensors, numbers, strings, None, lists, tuples and dicts.
    """
    name = keep(value, where)
    if name is not None:
        return {"tensor": name}
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():  # np.float64(0.1): a learning rate
        value = value.item()
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is float:
        return {"float": repr(value)}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        items = [encode(one, keep, f"{where}.{i}") for i, one in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    for kind, one in _DICTS.items():
        if type(value) is one:
            items = dict.items(value)  # type: ignore[arg-type]
            pairs = [(encode(k, keep, where), encode(v, keep, f"{where}.{k}")) for k, v in items]
            return {kind: pairs}
    raise TypeError(
        f"{where}: expected tensors, numbers, strings, None, and lists, tuples and dicts of them, got "
        f"{type(value).__name__}; save what it is made of"
    )


def decode(node: Any, tensors: dict[str, Any]) -> Any:
    """The value that :func:`encode` was given."""
    if isinstance(node, list):
        return [decode(one, tensors) for one in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(decode(one, tensors) for one in content)
    return _DICTS[kind]({decode(k, tensors): decode(v, tensors) for k, v in content})


def metadata_of(state: Any, kind: str) -> dict[str, str]:
    """The metadata of a file, before it is sealed."""
    return {"format": "pyro_vd checkpoint", "version": "1", "kind": kind, "state": json.dumps(state), "sha256": _BLANK}


def write_sealed(path: Any, content: bytes) -> None:
    """Write the file with its digest."""
    check_path(path, "save_checkpoint")
    blank = f'"sha256":"{_BLANK}"'.encode()
    assert content.count(blank) == 1
    write_whole(path, content.replace(blank, f'"sha256":"{hashlib.sha256(content).hexdigest()}"'.encode()))


def write_whole(path: Any, content: bytes) -> None:
    """Write a file under another name in the same folder, and rename it when it is on the disk."""
    target = Path(path).resolve()
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is on the disk when its folder is
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_sealed(path: Any, kind: str) -> tuple[bytes, Any]:
    """The content of a file, and its state as JSON.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a file of something else, a truncated or changed one.
    """
    content = Path(check_path(path, "load_checkpoint")).read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata: Any = None
    try:
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        found, digest = metadata["format"], metadata["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = digest = None
    if found != "pyro_vd checkpoint":
        raise ValueError(
            f"load_checkpoint: expected a file of save_checkpoint, got {str(path)!r}, which is another or a truncated "
            "one; load it with what wrote it, or an earlier checkpoint"
        )
    blanked = content.replace(f'"sha256":"{digest}"'.encode(), f'"sha256":"{_BLANK}"'.encode(), 1)
    if hashlib.sha256(blanked).hexdigest() != digest:
        raise ValueError(
            f"load_checkpoint: expected {str(path)!r} as it was written, got a truncated or changed file: its SHA-256 "
            "is not the one it holds; load an earlier checkpoint"
        )
    if (metadata["version"], metadata["kind"]) != ("1", kind):
        raise ValueError(
            f"load_checkpoint: expected version 1 of {kind}, got {str(path)!r} of version {metadata['version']} of "
            f"{metadata['kind']}; load it with the pyro_vd that wrote it"
        )
    return content, json.loads(metadata["state"])
