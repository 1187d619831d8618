"""Which code is the user's: neither of this package, nor of torch, Pyro or the standard library."""

from __future__ import annotations

import linecache
import sys
import warnings

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
    found, traceback = "", error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(traceback.tb_frame.f_globals.get("__name__")) and not code.co_filename.startswith("<"):
            line = linecache.getline(code.co_filename, traceback.tb_lineno).strip()
            found = f", in line {traceback.tb_lineno} of {code.co_filename}: {line}"
        traceback = traceback.tb_next
    return found
