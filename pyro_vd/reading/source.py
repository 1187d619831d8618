"""The source of a module: the functions of it that run on data, and their syntax trees."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from types import FunctionType
from typing import Any

from torch import nn

from pyro_vd.reading.values import is_of_torch, kind_of


def own_functions(module: nn.Module) -> list[Any]:
    """The functions of a module that run on data: ``forward``, and those that name a parameter of it.

    All are those of its class, down to the class that has its ``forward``.
    """
    given = vars(module).get("forward")
    if given is not None:
        return [getattr(given, "__func__", given)]
    found: dict[str, Any] = {}
    for one in kind_of(module).__mro__:
        if one is nn.Module or is_of_torch(one):
            break
        for name, value in vars(one).items():
            if isinstance(value, FunctionType) and not name.startswith(("__", "reset", "init", "_init", "extra_repr")):
                found.setdefault(name, value)
        if "forward" in vars(one):
            break
    if "forward" not in found:
        return list(found.values())
    return [
        one for name, one in found.items() if name == "forward" or set(one.__code__.co_names) & set(module._parameters)
    ]


@functools.lru_cache(maxsize=4096)
def tree_of(function: Any) -> Any:
    """The syntax tree of a function; None where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return tree if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)) else None
