"""Everything that a step may change, kept until it has succeeded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vd._pyro_interrupted import handlers_kept
from pyro_vd.compiled.surroundings import Surroundings


class Backup:
    """What there was before a step: values and gradients of tensors, the structure around them, random numbers.

    Args:
        surroundings: the contents of modules, closures, Pyro's store and optimizers.
        tensors: whose values and gradients are kept.
        dicts: more dicts, whose contents are kept.
    """

    def __init__(self, surroundings: Surroundings, tensors: Iterable[Tensor], dicts: Iterable[dict[str, Any]]):
        self.surroundings = surroundings
        self.values = {tensor: tensor.detach().clone() for tensor in tensors}
        self._gradients = [(t, t.grad, None if t.grad is None else t.grad.clone()) for t in self.values if t.is_leaf]
        self._dicts = [(one, dict(one)) for one in dicts]
        self._validation = is_validation_enabled()
        self._noise = torch.get_rng_state()
        devices = {tensor.device for tensor in self.values if tensor.is_cuda}
        self._device_noise = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def restore(self, plain: bool = True) -> None:
        """Make everything as it was; ``plain``: as of :meth:`Surroundings.restore`."""
        self.surroundings.restore(plain)
        for one, before in self._dicts:
            one.clear()
            one.update(before)
        pyro.enable_validation(self._validation)
        self.restore_values()

    @torch.no_grad()
    def restore_values(self, noise: bool = True) -> None:
        """Make the values of the tensors, their gradients and, with ``noise``, the next random numbers as they were."""
        for tensor, value in self.values.items():
            tensor.copy_(value)
        for tensor, gradient, value in self._gradients:
            tensor.grad = gradient
            if gradient is not None and value is not None:
                gradient.copy_(value)
        if not noise:
            return
        torch.set_rng_state(self._noise)
        for device, state in self._device_noise:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def all_or_nothing(backup: Backup) -> Iterator[Backup]:
    """A context in which an exception or an interrupt leaves everything as it was when ``backup`` was made.

    But for the plain values of a user's own code: a model that counts its calls, or interrupts the third, has run.
    """
    with handlers_kept():
        try:
            yield backup
        except BaseException:
            backup.restore(plain=False)
            raise
