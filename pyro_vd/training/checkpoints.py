"""Checkpoints: a training, saved to one file, goes on from it bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_vd.common.checkpoint_file import decode, encode, metadata_of, read_sealed, write_sealed
from pyro_vd.common.extras import imported
from pyro_vd.common.options import check_count, check_flag
from pyro_vd.compiled.svi import CompiledSVI
from pyro_vd.training.parts import Part, parts_of
from pyro_vd.training.random_states import check_random_states, random_states, set_random_states


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load_checkpoint` returns.

    Attributes:
        step: as given to :func:`save_checkpoint`.
        extra: as given to :func:`save_checkpoint`.

    See also:
        :func:`pyro_vd.training.save_checkpoint`, :func:`pyro_vd.training.load_checkpoint`.
    """

    step: int
    extra: Any


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    svi: SVI | CompiledSVI | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    optimizers: Mapping[str, Any] | None = None,
    schedulers: Mapping[str, Any] | None = None,
    step: int = 0,
    extra: Any = None,
) -> None:
    """Save a training to a file of safetensors, from which it goes on bit for bit.

    The file holds parameters and buffers of the modules, Pyro's parameter store, the state of optimizers and
    schedulers, and the random states of torch (CPU and CUDA), NumPy and Python. It is written beside ``path`` and
    renamed when it is on the disk: whatever ends the process, ``path`` is the earlier checkpoint or the new one.
    A process that is killed while it writes leaves a file ``.NAME.*.part``. Gradients are saved of a
    :class:`pyro_vd.CompiledSVI` only: save after a step of an optimizer. A ``torch.Generator``, and a buffer that is
    not persistent, are not saved.

    Args:
        path: of the file.
        svi: saves all modules that its model and guide reach, and its optimizer.
        modules: by name, for a loop of one's own.
        optimizers: by name, of ``torch.optim`` or ``pyro.optim``.
        schedulers: by name: of learning rates, a ``GradScaler``; what has a ``state_dict`` and ``load_state_dict``.
        step: steps that are done; a schedule of ``pyro_vd.training`` has no other state.
        extra: anything of numbers, strings, None, lists, tuples and dicts.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: an argument of another kind; a state that holds other things than tensors and plain values.
        ValueError: a parameter or a state of an optimizer with NaN; nothing is written.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(2, 1)
        >>> adam = torch.optim.Adam(net.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/run.safetensors"
        ...     save_checkpoint(file, modules={"net": net}, optimizers={"adam": adam}, step=7, extra={"epoch": 1})
        ...     load_checkpoint(file, modules={"net": net}, optimizers={"adam": adam})
        Checkpoint(step=7, extra={'epoch': 1})

    See also:
        :func:`pyro_vd.training.load_checkpoint`, :class:`pyro_vd.training.Checkpoint`.
    """
    files = imported("safetensors.torch", "safetensors", "checkpoint")
    step = check_count("step", step, 0)
    tensors: dict[str, Tensor] = {}

    def keep(value: Any, where: str) -> str | None:
        if not isinstance(value, Tensor):
            return None
        name = where if where not in tensors else f"{where}#{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return name

    parts = parts_of(svi, modules, optimizers, schedulers)
    state: dict[str, Any] = {part.name: encode(part.save(), keep, part.name) for part in parts}
    buffers = {f"{part.name}.{name}" for part in parts for name in part.buffers()}
    for name, value in tensors.items():
        if name not in buffers and bool(torch.isnan(value).any()):
            raise ValueError(
                f"save_checkpoint: expected finite values, got NaN in {name!r}; nothing is written, go on from the "
                "checkpoint before"
            )
    state["random"] = encode(random_states(), keep, "random")
    state["step"] = step
    state["extra"] = encode(extra, _no_tensor, "extra")
    write_sealed(path, files.save(tensors, metadata_of(state, "a training in torch")))


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    svi: SVI | CompiledSVI | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    optimizers: Mapping[str, Any] | None = None,
    schedulers: Mapping[str, Any] | None = None,
    random_states: bool = True,
) -> Checkpoint:
    """Load what :func:`save_checkpoint` saved into the same objects, or into those of the same program run again.

    Everything is checked before anything is changed; an exception after that puts everything back. A guide whose
    parameters are made by ``pyro.param`` runs once before: ``guide(*args)``.

    Args:
        path: of the file.
        svi, modules, optimizers, schedulers: as given to :func:`save_checkpoint`.
        random_states: whether the global random states are loaded too.

    Returns:
        The ``step`` and ``extra`` that were saved.

    Raises:
        ImportError: safetensors is not installed.
        OSError: a file that cannot be read.
        ValueError: a truncated, changed or foreign file; other parts, names, shapes or dtypes than there are, by name.

    Example:
        See :func:`save_checkpoint`.

    See also:
        :func:`pyro_vd.training.save_checkpoint`, :class:`pyro_vd.training.Checkpoint`.
    """
    files = imported("safetensors.torch", "safetensors", "checkpoint")
    check_flag("random_states", random_states)
    content, tree = read_sealed(path, "a training in torch")
    tensors = files.load(content)
    state = {name: decode(node, tensors) for name, node in tree.items()}
    parts = parts_of(svi, modules, optimizers, schedulers)
    names, saved = [part.name for part in parts], [name for name in state if name not in ("random", "step", "extra")]
    if sorted(names) != sorted(saved):
        raise ValueError(
            f"load_checkpoint: expected {names}, as svi, modules, optimizers and schedulers say, got {saved} in "
            f"{str(path)!r}; give what was given to save_checkpoint"
        )
    for part in parts:
        part.check(state[part.name])
    if random_states:
        check_random_states(state["random"])
    _load(parts, state, random_states)
    return Checkpoint(state["step"], state["extra"])


def _load(parts: list[Part], state: dict[str, Any], with_random_states: bool) -> None:
    back = [part.keep() for part in parts]
    before = random_states()
    try:
        for part in parts:
            part.load(state[part.name])
        if with_random_states:
            set_random_states(state["random"])
    except BaseException:
        for undo in back:
            undo()
        set_random_states(before)
        raise


def _no_tensor(value: Any, where: str) -> None:
    return None
