"""The global random states: of torch, NumPy and Python."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """A copy of the states, of tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (kind, torch.tensor(np.asarray(keys, dtype=np.int64)), *rest),
        "python": (version, torch.tensor(words), gauss),
    }


def _devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_random_states(states: dict[str, Any]) -> None:
    """ValueError where there are fewer devices than states."""
    if len(states["cuda"]) > _devices():
        raise ValueError(
            f"load_checkpoint: expected {len(states['cuda'])} CUDA devices, whose random states the file holds, got "
            f"{_devices()}; write random_states=False, and the run goes on with other random numbers"
        )


def set_random_states(states: dict[str, Any]) -> None:
    """Set all of them."""
    kind, keys, *rest = states["numpy"]
    version, words, gauss = states["python"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate((version, tuple(words.tolist()), gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def resume_random_states(states: list[dict[str, Any]], rank: int, processes: int) -> bool:
    """Set those of a process among the states of all, as far as they are there; warn of what is not.

    Args:
        states: of every process of the run that is resumed.
        rank, processes: of the run now.

    Returns:
        Whether they were set: not where the number of processes is another.
    """
    lost = "random states of the checkpoint: expected {} as it was saved with, got {}; the run goes on with {}"
    if len(states) != processes:
        warnings.warn(lost.format(f"{len(states)} processes", processes, "other random numbers"), stacklevel=3)
        return False
    own = states[rank]
    if len(own["cuda"]) > _devices():
        devices, numbers = f"{len(own['cuda'])} CUDA devices", "those of the CPU, and other random numbers on devices"
        warnings.warn(lost.format(devices, _devices(), numbers), stacklevel=3)
        own = own | {"cuda": []}
    set_random_states(own)
    return True


def mixed_seed(seed: int, rank: int) -> int:
    """A seed of its own for a process of a run: of 64 bits, so that no two pairs have the same by being near."""
    return int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0])
