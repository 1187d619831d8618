"""Packages that a few functions need, imported when they are called."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def imported(module: str, extra: str, owner: str) -> Any:
    """The module, or ImportError that names the ``owner`` which needs it and the extra that brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is installed, and one of its own imports is missing
        raise ImportError(
            f"{owner}: expected {module.partition('.')[0]}, found none; write pip install pyro_vd[{extra}]"
        ) from None
