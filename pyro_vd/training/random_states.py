"""The global random states: of torch, NumPy and Python."""

from __future__ import annotations

import random
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


def check_random_states(states: dict[str, Any]) -> None:
    """ValueError where there are fewer devices than states."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(states["cuda"]) > found:
        raise ValueError(
            f"load_checkpoint: expected {len(states['cuda'])} CUDA devices, whose random states the file holds, got "
            f"{found}; write random_states=False, and the run goes on with other random numbers"
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
