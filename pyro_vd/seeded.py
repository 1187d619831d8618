"""A model that sets the seed of PyTorch's random numbers draws the same noise in every run: seen, and said."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

RUNS = 2  # after which no run is looked at any more


class SeedWatch:
    """Looks at the seed after the first runs of model and guide.

    A seed that is that of the training already is not seen: it leaves no trace.

    Attributes:
        runs: how many runs were looked at.
    """

    def __init__(self) -> None:
        self.runs = 0

    def end(self, seed: int) -> None:
        """Note that a run has ended, before which the seed was ``seed``; warn, once, where it is another now."""
        self.runs += 1
        if torch.initial_seed() != seed:
            self.runs = RUNS
            _warn()


@contextmanager
def seed_watched() -> Iterator[None]:
    """A context of predictions in which a seed that the model sets is warned of."""
    seed = torch.initial_seed()
    yield
    if torch.initial_seed() != seed:
        _warn()


def _warn() -> None:
    warnings.warn(
        "expected a model, guide and net that leave the seed of the random numbers alone, got a run that sets it "
        "(torch.manual_seed, pyro.set_rng_seed): every run has the same noise, so that a training fits one draw and a "
        "prediction repeats it; set the seed once, before the training, or within torch.random.fork_rng()",
        stacklevel=6,
    )
