"""Files of pruned nets: safetensors with indices and values in the place of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vd.sparsity.prune import remove_masks

# Of a tensor "name" that is stored sparse: flat indices, values, sizes.
PARTS = (".sparse_indices", ".sparse_values", ".sparse_shape")


def save_sparse(net: nn.Module, path: str | Path) -> int:
    """Write the parameters and buffers of a net to a safetensors file, each as its nonzero elements where that is less.

    A plain script reads it, without this library::

        held = safetensors.torch.load_file(path)
        for name in [n.removesuffix(".sparse_indices") for n in held if n.endswith(".sparse_indices")]:
            indices, values, shape = (held.pop(f"{name}.sparse_{part}") for part in ("indices", "values", "shape"))
            held[name] = torch.zeros(shape.tolist(), dtype=values.dtype).flatten().index_copy(
                0, indices.long(), values).reshape(shape.tolist())
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
    files = _safetensors()
    held: dict[str, Tensor] = {}
    for name, tensor in remove_masks(net).state_dict().items():
        if name.endswith(PARTS):
            raise ValueError(f"save_sparse: expected names that do not end in one of {PARTS}, got {name!r}; rename it")
        tensor = tensor.detach().cpu().contiguous()
        flat = tensor.flatten()
        indices = flat.nonzero()[:, 0].to(torch.int16 if flat.numel() < 2**15 else torch.int32)
        if (
            flat.numel() >= 2**31
            or indices.nbytes + len(indices) * flat.element_size() + 8 * tensor.dim() >= flat.nbytes
        ):
            held[name] = tensor.clone()
        else:
            shape = torch.tensor(tensor.shape, dtype=torch.int64)
            held |= dict(zip([name + part for part in PARTS], (indices, flat[indices.long()], shape), strict=True))
    files.save_file(held, path)
    return Path(path).stat().st_size


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
    held = _safetensors().load_file(path)
    for name in [found.removesuffix(PARTS[0]) for found in held if found.endswith(PARTS[0])]:
        missing = [name + part for part in PARTS if name + part not in held]
        if missing:
            raise ValueError(f"load_sparse: expected {name!r} in parts {PARTS}, got none of {missing}; write it again")
        indices, values, shape = (held.pop(name + part) for part in PARTS)
        dense = torch.zeros(torch.Size(shape.tolist()), dtype=values.dtype).flatten()
        if len(indices) != len(values) or (
            len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(dense)
        ):
            raise ValueError(
                f"load_sparse: {name!r}: expected as many indices below {len(dense)} as values, got {len(indices)} and "
                f"{len(values)}; write it again"
            )
        held[name] = dense.index_copy(0, indices.long(), values).reshape(shape.tolist())
    return held


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError(
            "save_sparse: expected safetensors, found none; write pip install pyro_vd[safetensors]"
        ) from None
    return safetensors.torch
