"""Checkpoints: a training in NumPyro, saved to one file, goes on from it bit for bit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from pyro_vd.common.checkpoint_file import decode, encode, metadata_of, read_sealed, write_sealed
from pyro_vd.common.extras import imported
from pyro_vd.common.options import check_count


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load_checkpoint` returns.

    Attributes:
        state: as ``like``, with the values of the file.
        step: as given to :func:`save_checkpoint`.
        extra: as given to :func:`save_checkpoint`.

    See also:
        :func:`pyro_vd.numpyro.training.save_checkpoint`, :func:`pyro_vd.numpyro.training.load_checkpoint`.
    """

    state: Any
    step: int
    extra: Any


def save_checkpoint(path: str | os.PathLike[str], svi_state: Any, *, step: int = 0, extra: Any = None) -> None:
    """Save the state of a training to a file of safetensors, from which it goes on bit for bit.

    The state of NumPyro's ``SVI`` holds parameters, optimizer, random key, and what a net changes itself. The file is
    written beside ``path`` and renamed when it is on the disk: whatever ends the process, ``path`` is the earlier
    checkpoint or the new one. The global random states of NumPy and Python are not saved.

    Args:
        path: of the file.
        svi_state: what ``svi.init`` or ``svi.update`` returned, or any tree of arrays and numbers.
        step: steps that are done; a schedule of ``pyro_vd.numpyro.training`` has no other state.
        extra: anything of numbers, strings, None, lists, tuples and dicts.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: a leaf that is neither an array nor a number; ``extra`` of other things.
        ValueError: an array with NaN, or a state without an array; nothing is written.

    Example:
        >>> import tempfile
        >>> state = {"loc": jnp.ones(2), "key": jax.random.key(0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/run.safetensors", state, step=7)
        ...     found = load_checkpoint(f"{folder}/run.safetensors", like=state)
        >>> found.step, found.state["loc"].tolist()
        (7, [1.0, 1.0])

    See also:
        :func:`pyro_vd.numpyro.training.load_checkpoint`, :class:`pyro_vd.numpyro.training.Checkpoint`.
    """
    files = imported("safetensors.numpy", "safetensors", "checkpoint")
    step = check_count("step", step, 0)
    arrays, kinds = {}, {}
    for name, leaf in _leaves(svi_state).items():
        value = _values(name, leaf)
        if value.dtype.kind not in "biuOSU" and bool(np.isnan(value).any()):
            raise ValueError(
                f"save_checkpoint: expected finite values, got NaN in {name!r}; nothing is written, go on from the "
                "checkpoint before"
            )
        kinds[name] = _kind(leaf)
        arrays[name] = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    if not arrays:
        raise ValueError(
            f"save_checkpoint: expected the state of a training, got {type(svi_state).__name__} without an array; "
            "write save_checkpoint(path, svi_state) with what svi.init or svi.update returned"
        )
    weak = [name for name, leaf in _leaves(svi_state).items() if getattr(leaf, "weak_type", False)]
    state: dict[str, Any] = {"weak": weak, "leaves": encode(kinds, _no_array, "state"), "step": step}
    state["extra"] = encode(extra, _no_array, "extra")
    write_sealed(path, files.save(arrays, metadata_of(state, "a training in NumPyro")))


def load_checkpoint(path: str | os.PathLike[str], like: Any) -> Checkpoint:
    """The state that :func:`save_checkpoint` saved.

    Args:
        path: of the file.
        like: a state of the same program, such as ``svi.init(...)`` returns; its arrays say where those of the file
            lie (device and sharding).

    Returns:
        The state, ``step`` and ``extra`` that were saved.

    Raises:
        ImportError: safetensors is not installed.
        OSError: a file that cannot be read.
        ValueError: a truncated, changed or foreign file; other names, shapes, dtypes or kinds of keys than in ``like``.

    Example:
        See :func:`save_checkpoint`.

    See also:
        :func:`pyro_vd.numpyro.training.save_checkpoint`, :class:`pyro_vd.numpyro.training.Checkpoint`.
    """
    files = imported("safetensors.numpy", "safetensors", "checkpoint")
    content, tree = read_sealed(path, "a training in NumPyro")
    saved, arrays, leaves = decode(tree["leaves"], {}), files.load(content), _leaves(like)
    missing, extra = [name for name in leaves if name not in saved], [name for name in saved if name not in leaves]
    if missing or extra:
        raise ValueError(
            f"like: expected a state with exactly the arrays of the file, got {missing} besides and none of {extra}; "
            "give svi.init(...) of the program that saved it"
        )
    for name, leaf in leaves.items():
        if saved[name] != _kind(leaf):
            raise ValueError(
                f"like: expected {name!r} of kind, dtype and shape {saved[name]}, as in the file, got {_kind(leaf)}; "
                "give svi.init(...) of the program that saved it"
            )
    found = [_restored(arrays[name], leaf, _values(name, leaf), name in tree["weak"]) for name, leaf in leaves.items()]
    state = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), found)
    return Checkpoint(state, tree["step"], decode(tree["extra"], {}))


def _leaves(tree: Any) -> dict[str, Any]:
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> tuple:
    """The properties of a leaf that must be equal in file and program."""
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return type(leaf).__name__, "", ()
    return "array", str(leaf.dtype), tuple(leaf.shape)


def _values(name: str, leaf: Any) -> np.ndarray:
    if type(leaf) not in (bool, int, float) and not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        raise TypeError(f"{name}: expected an array or a number, got {type(leaf).__name__}; save what it is made of")
    return np.asarray(jax.random.key_data(cast(Any, leaf)) if _is_key(leaf) else leaf)


def _restored(content: np.ndarray, leaf: Any, value: np.ndarray, is_weak: bool) -> Any:
    new = np.frombuffer(content.tobytes(), value.dtype).reshape(value.shape)
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        if is_weak and not leaf.shape:
            return jnp.asarray(new.item())  # of a Python number: its type stays weak
        return jax.device_put(new, leaf.sharding) if getattr(leaf, "committed", True) else jnp.asarray(new)
    return new.copy() if isinstance(leaf, np.ndarray) else type(leaf)(new[()])


def _no_array(value: Any, where: str) -> None:
    return None
