"""Which code is the user's: neither of this package, nor of torch, Pyro or the standard library; what it names."""

from __future__ import annotations

import dis
import linecache
import re
import sys
import types
import warnings
from collections.abc import Iterator
from traceback import walk_tb
from weakref import WeakKeyDictionary

_HOSTS = {"pyro_vd", "torch", "pyro", "numpy", "builtins"} | sys.stdlib_module_names


def is_users(module_name: str | None) -> bool:
    """Whether a module of this name may hold a model, a guide or what they call."""
    return module_name is not None and module_name.partition(".")[0] not in _HOSTS


def warn_user(message: str) -> None:
    """A warning at the line of the user's code that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and not is_users(frame.f_globals.get("__name__")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def users_line(error: BaseException) -> str:
    """The last line of the user's code that an error went through, or an empty text."""
    found = ""
    for frame, number in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if is_users(frame.f_globals.get("__name__")) and not file.startswith("<"):
            found = f", in line {number} of {file}: {linecache.getline(file, number).strip()}"
    return found


_GLOBALS: WeakKeyDictionary[types.CodeType, list[tuple[str, ...]]] = WeakKeyDictionary()


def globals_of(code: types.CodeType) -> list[tuple[str, ...]]:
    """The globals that a function and those within it read, each with the attributes that are read of it."""
    if code not in _GLOBALS:
        _GLOBALS[code] = list(dict.fromkeys(_read_in(code)))
    return _GLOBALS[code]


def _read_in(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    path: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and path:
            path.append(str(instruction.argval))
            continue
        if path and instruction.opname not in ("CACHE", "PUSH_NULL"):
            yield tuple(path)
            path = []
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            path = [str(instruction.argval)]
    if path:
        yield tuple(path)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _read_in(constant)


def imports_of(code: types.CodeType) -> list[tuple[types.ModuleType, set[str]]]:
    """The user's modules that a function, or one within it, imports when it runs, and every name in their code."""
    if code not in _IMPORTS:
        codes = list(_codes_in(code))
        read = (one for each in codes for one in dis.get_instructions(each) if one.opname == "IMPORT_NAME")
        modules = dict.fromkeys(str(one.argval) for one in read if is_users(one.argval))
        _IMPORTS[code] = list(modules), {name for each in codes for name in each.co_names}
    modules, names = _IMPORTS[code]
    return [(sys.modules[module], names) for module in modules if module in sys.modules]


def names_as_text(code: types.CodeType) -> frozenset[str]:
    """The names that a function, or one within it, may read by text: ``globals()["noise"]``, ``eval("noise")``."""
    if code not in _TEXTS:
        codes = list(_codes_in(code))
        by_text = any(not _BY_TEXT.isdisjoint(each.co_names) for each in codes)
        texts = [one for each in codes for one in each.co_consts if isinstance(one, str)] if by_text else []
        _TEXTS[code] = frozenset(name for text in texts for name in re.findall(r"[^\W\d]\w*", text))
    return _TEXTS[code]


def reads_environment(code: types.CodeType) -> bool:
    """Whether a function, or one within it, names ``os.environ`` or ``os.getenv``."""
    return any(not _ENVIRONMENT.isdisjoint(each.co_names) for each in _codes_in(code))


_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}
_BY_TEXT = {"globals", "vars", "getattr", "eval", "exec", "__dict__", "attrgetter"}
_TEXTS: WeakKeyDictionary[types.CodeType, frozenset[str]] = WeakKeyDictionary()
_IMPORTS: WeakKeyDictionary[types.CodeType, tuple[list[str], set[str]]] = WeakKeyDictionary()


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_in(constant)
