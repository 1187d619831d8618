"""Every private corner of NumPyro that this package uses, each with one canary test.

Tried with numpyro 0.20.1 to 0.22.0.
"""

from __future__ import annotations

from typing import Any

import numpyro
from jax import Array
from numpyro import primitives
from numpyro.infer.elbo import _check_mean_field_requirement

# Warns where model and guide have their sites in another order, as ``numpyro.infer.TraceMeanField_ELBO`` does:
# https://github.com/pyro-ppl/numpyro/blob/0.22.0/numpyro/infer/elbo.py
check_mean_field_requirement = _check_mean_field_requirement


def handlers_are_active() -> bool:
    """Whether an effect handler is around the program: without one no site is recorded and no key given.

    NumPyro has no public function for it: https://github.com/pyro-ppl/numpyro/blob/0.22.0/numpyro/primitives.py
    """
    return bool(primitives._PYRO_STACK)


class Prediction(primitives.Messenger):
    """Marks a run for prediction, whose log likelihood is not used: there a plate may have any size."""


def is_prediction() -> bool:
    """Whether the caller runs under :class:`Prediction`."""
    return any(isinstance(handler, Prediction) for handler in primitives._PYRO_STACK)


def current_key() -> Array | None:
    """A random key of the handlers around the program, None without; ``numpyro.prng_key`` warns instead."""
    return numpyro.prng_key() if handlers_are_active() else None


def note_plates(guide: Any, frames: dict[str, Any], sizes: dict[str, int]) -> None:
    """Tell an automatic guide which plates its ``_create_plates`` opens.

    ``AutoGuide._setup_prototype`` does so after it has drawn every site from its prior, which not every prior allows:
    https://github.com/pyro-ppl/numpyro/blob/0.22.0/numpyro/infer/autoguide.py
    """
    guide._prototype_frames, guide._prototype_frame_full_sizes = frames, sizes
