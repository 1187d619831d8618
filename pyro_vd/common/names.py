"""The names that a package shows."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def public_names(namespace: dict[str, Any]) -> list[str]:
    """The names for ``dir``, from a package's ``namespace``: what it lists, and the modules that are public."""
    modules = {"guides", "kl", "metrics", "numpyro", "operations", "plots", "posteriors", "training"}
    return sorted(
        name
        for name, value in namespace.items()
        if name in modules or name == "__version__" or not (name.startswith("_") or isinstance(value, ModuleType))
    )
