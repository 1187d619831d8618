"""Which torch modules a model or guide refers to: itself, by closure, default, global name, attribute or container."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pyro_vd._pyro import under_handler

# No function of theirs refers to a module of a user.
_LIBRARIES = {"torch", "pyro", "pyro_vd", "numpy", *sys.stdlib_module_names} - {"__main__"}
_PLAIN = (type(None), Tensor, str, bytes, int, float, complex, type)


def referenced_modules(fn: Callable) -> list[nn.Module]:
    """The modules that a model or guide may call; none that is part of another one of them.

    A module refers to itself. A function refers to what its code names: variables of its closure, default arguments,
    globals, and the attributes and methods of these. The search goes on through the functions found,
    ``functools.partial``, bound methods, handlers of Pyro, and lists, tuples, sets and dicts. It does not see a module
    that is made in the call, or that is looked up by a string.

    Args:
        fn: a module, a function, or any callable.

    Returns:
        The modules: those of the closure by the names of its variables, of defaults, and of globals as they come in
        the code.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> referenced_modules(lambda x: net(x))
        [Linear(in_features=2, out_features=3, bias=True)]
    """
    found = dict.fromkeys(_modules(fn, (), []))
    parts = {part for module in found for part in module.modules() if part is not module}
    return [module for module in found if module not in parts]


def _modules(value: Any, names: tuple[str, ...], seen: list[Any]) -> Iterator[nn.Module]:
    """The modules that ``value`` refers to; an object does by its attributes and methods with one of the ``names``."""
    if isinstance(value, _PLAIN):
        return
    if isinstance(value, nn.Module):
        yield value
        yield from _by_function(type(value).forward, value, seen)
    elif isinstance(value, types.FunctionType):
        yield from _by_function(value, None, seen)
    elif isinstance(value, types.MethodType):
        owner = value.__self__
        if isinstance(owner, nn.Module):
            yield owner
        yield from _by_function(value.__func__, owner, seen)
    elif (inner := under_handler(value)) is not None:
        yield from _modules(inner, names, seen)
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _modules(part, names, seen)
    elif isinstance(value, (list, tuple, set, frozenset, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _modules(part, names, seen)
    elif isinstance(value, types.ModuleType):
        if value.__name__.partition(".")[0] not in _LIBRARIES:
            for name in names:
                yield from _modules(vars(value).get(name), names, seen)
    else:
        yield from _by_names(value, (*names, "__call__", "__wrapped__"), seen)


def _by_function(function: Any, owner: Any, seen: list[Any]) -> Iterator[nn.Module]:
    """What the code of a function names; of ``owner``, the object whose method it is, too."""
    if not isinstance(function, types.FunctionType) or _of_library(function):
        return
    if any(function is other and owner is its for other, its in seen):
        return
    seen.append((function, owner))
    loaded, names = _names(function.__code__)
    values = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    values += [function.__globals__[name] for name in loaded if name in function.__globals__]
    for value in values:
        yield from _modules(value, names, seen)
    if owner is not None:
        yield from _by_names(owner, names, seen)


def _by_names(owner: Any, names: tuple[str, ...], seen: list[Any]) -> Iterator[nn.Module]:
    """What the attributes, methods and properties of an object with these names refer to."""
    own = getattr(owner, "__dict__", {})
    for name in names:
        member = getattr(type(owner), name, None)
        yield from _by_function(member.fget if isinstance(member, property) else member, owner, seen)
        yield from _modules(own.get(name), names, seen)


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[list[str], tuple[str, ...]]:
    """The globals that a piece of code and the functions in it load; these and the attributes that they read."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    loaded = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    names = [*code.co_names, *(name for _, attributes in inner for name in attributes)]
    return [*loaded, *(name for globals_, _ in inner for name in globals_)], tuple(dict.fromkeys(names))


def _of_library(thing: Any) -> bool:
    code = getattr(thing, "__code__", None)
    if code is not None and code.co_filename.startswith("<"):  # typed in, or in a docstring
        return False
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in _LIBRARIES


def _is_set(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # of a variable that is assigned later
        return False
    return True
