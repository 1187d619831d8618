"""What the walk over a model reads in a way of its own: slots, context variables, the environment, forms of tensors."""

from __future__ import annotations

import contextvars
import functools
import os
import sys
import types
from array import array
from collections import deque
from pathlib import Path
from typing import Any

from pyro.infer import ELBO
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vd.compiled.user_code import is_users

# Objects of libraries that say what a model is. Other objects of libraries (loaders, writers) are not looked into.
MODELS = (nn.Module, Distribution, Messenger, ELBO)
# Modules of the standard library whose objects hold what a user has put in: SimpleNamespace, Namespace, UserDict,
# ChainMap, threading.local.
HOLDERS = {"types", "argparse", "collections", "_thread"}


class _Environment:
    """The environment variables, which are read as the bytes of an array are."""

    def tobytes(self) -> bytes:
        return repr(sorted(os.environ.items())).encode()


ENVIRONMENT = _Environment()


def is_of_library(value: Any) -> bool:
    """Whether a function or class is of an installed package, which is no model by itself."""
    return isinstance(value, (types.FunctionType, type)) and _is_installed(value.__module__ or "")


@functools.cache
def _is_installed(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return not _PACKAGES.isdisjoint(Path(file).parts)


_PACKAGES = {"site-packages", "dist-packages"}


def is_written_by_users(value: Any, container: bool) -> bool:
    """Whether it is a user's code that writes to an object; to a container as to what it was found in."""
    if isinstance(value, types.FunctionType):
        return is_users(value.__module__)
    if type(value).__module__ in ("builtins", *HOLDERS):
        return container
    return is_users(type(value).__module__) and not isinstance(value, (AutoGuide, ELBO, Messenger))


def may_hold_more(value: Any) -> bool:
    """Whether a walk goes on from a value to others that may change."""
    if isinstance(value, (list, dict, set, frozenset, tuple, deque, bytearray, array)):
        return bool(len(value))
    if isinstance(value, (types.FunctionType, type)):
        return is_users(value.__module__)
    if isinstance(value, (functools.partial, types.MethodType, *MODELS)):
        return True
    return is_users(type(value).__module__) or type(value).__module__ in HOLDERS


def form_of(value: Tensor) -> Any:
    """Shape, dtype and device of a tensor."""
    try:
        return value.shape, value.dtype, value.device
    except RuntimeError:  # of a lazy module, or nested
        return None


def in_this_context(variable: contextvars.ContextVar) -> Any:
    """The value of a context variable; None where it has none."""
    return variable.get(None)


def slot_of(value: Any, name: str) -> Any:
    """What is in a slot of an object; None where that is not set."""
    return getattr(value, name, None)
