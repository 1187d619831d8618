"""One tensor for a parameter in its module and in Pyro's parameter store."""

from __future__ import annotations

import pyro
import torch
from torch import nn


def adopt_stored_value(name: str, parameter: nn.Parameter) -> None:
    """Where Pyro's store has a tensor of its own under ``name``, copy its value and put ``parameter`` in its place.

    The store has the last word, as for any Pyro module: it may hold a loaded checkpoint. But the
    tensor stays that of the module, so that an optimizer over its parameters trains what the model uses.

    Raises:
        ValueError: the store's tensor has another shape.
    """
    store = pyro.get_param_store()
    stored = store._params.get(name)
    if stored is None or stored is parameter:
        return
    if stored.shape != parameter.shape:
        raise ValueError(
            f"parameter {name!r}: expected shape {tuple(parameter.shape)}, got {tuple(stored.shape)} in Pyro's "
            "parameter store, from another model of that name; write pyro.clear_param_store() or another name="
        )
    with torch.no_grad():
        parameter.copy_(stored)
    store[name] = parameter
