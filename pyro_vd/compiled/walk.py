"""The walk over everything that a model, a guide and a loss refer to: plain values, tensors, and where they are."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import os
import types
from array import array
from collections import deque
from collections.abc import Iterable
from typing import Any
from weakref import ref

import torch
from pyro.infer import ELBO
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions.utils import lazy_property

from pyro_vd.compiled import readers
from pyro_vd.compiled.surroundings import PLAIN, Surroundings
from pyro_vd.compiled.user_code import (
    globals_of,
    imports_of,
    is_users,
    names_as_text,
    reads_environment,
    warn_user,
)

_CACHED = type(functools.cache(len))
DEPTH = 40  # references from one object to the next, counted from the model, the guide or the loss
LIBRARY_DEPTH = 6  # from a function or class of an installed package, whose globals lead to all of it
MAX_ELEMENTS = 10_000  # of a list, dict or array; of a longer one the length counts only
# Modules of the standard library whose objects are values: equal ones are the same, and they never change.
_VALUES = {"datetime", "decimal", "fractions", "pathlib", "uuid"}


def surroundings_of(
    roots: Iterable[tuple[str, Any]],
    *,
    left_out: Iterable[str] = (),
    options: Iterable[dict] = (),
    kept: Iterable[dict | list] = (),
) -> Surroundings:
    """Walk from ``roots``, pairs of a name and an object.

    Args:
        roots: model, guide, loss.
        left_out: names of attributes and options that may change, since programs read them as inputs.
        options: dicts of plain values, of an optimizer.
        kept: dicts and lists that are watched and put back, but are in no key: those of Pyro's store and of optimizers.
    """
    walk = _Walk(frozenset(left_out))
    for name, root in roots:
        walk.visit(name, root, DEPTH)
    for one in options:
        walk.options(one)
    for one in kept:
        if isinstance(one, list):
            walk.found.lists.append(one)
            continue
        walk.found.dicts.append(one)
        for value in one.values():
            walk.hold("Pyro's store, or the state of the optimizer", value)
    walk.found.key = tuple(walk.key)
    if walk.too_deep:
        warn_user(
            f"expected values that are at most {DEPTH} references from model, guide and loss, got {walk.too_deep}: "
            "a compiled step sees a change of what lies deeper only when it is next compared with the eager step. Keep "
            "what changes nearer, in an attribute of the model, or give it to the step as a tensor"
        )
    return walk.found.remember()


class _Walk:
    def __init__(self, left_out: frozenset[str]):
        self.found, self.key = Surroundings(), []
        self.too_deep = ""  # the name of what lies deeper than is looked, but for code of installed packages
        self._in_library = False
        self._left_out, self._users = left_out, False
        self._seen: dict[int, Any] = {}  # by identity, while the walk holds every object that it has seen

    def hold(self, name: str, value: Any) -> None:
        """Note which tensor is in a place, and where it lies; that is part of no key."""
        if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided:
            self.found.tensors.append(value)
            self.found.places.append(name)

    def options(self, group: dict) -> None:
        """Note what is in a group of parameters of an optimizer."""
        for name, value in group.items():
            if name not in self._left_out:
                self.found.readers.append((group.get, name))
                self._note(f"the option {name!r} of the optimizer", name)
                self.visit(f"the option {name!r} of the optimizer", value, DEPTH)

    def visit(self, name: str, value: Any, depth: int) -> None:
        """Note ``value``, and go on to what it refers to."""
        if isinstance(value, Tensor):
            self._tensor(name, value)
        elif isinstance(value, PLAIN) or type(value).__module__.partition(".")[0] in _VALUES:
            self._note(name, (type(value), value))
        elif isinstance(value, (types.GenericAlias, types.UnionType)):
            self._note(name, repr(value))
        elif isinstance(value, slice):
            self.visit(name, (value.start, value.stop, value.step), depth)
        elif type(value).__module__ == "numpy":
            self._array(name, value)
        elif value is os.environ or value is os.getenv:
            self._environment()
        elif id(value) in self._seen or depth == 0:
            self._note(name, type(value))
            if id(value) not in self._seen and not self._in_library and readers.may_hold_more(value):
                self.too_deep = self.too_deep or name
        else:
            self._seen[id(value)] = value
            before, self._users = self._users, readers.is_written_by_users(value, self._users)
            if self._users:
                closure = (value.__closure__ or ()) if isinstance(value, types.FunctionType) else ()
                self.found.users += [value, getattr(value, "__dict__", None), *closure]
            depth = DEPTH if isinstance(value, nn.Module) else depth - 1  # modules nest as deep as nets do
            outer, is_library = self._in_library, readers.is_of_library(value)
            self._in_library = outer or is_library
            self._refers(name, value, min(depth, LIBRARY_DEPTH) if is_library else depth)
            self._in_library, self._users = outer, before

    def _note(self, name: str, entry: Any) -> None:
        self.key.append(entry)
        self.found.names.append(name)

    def _tensor(self, name: str, value: Tensor) -> None:
        # The values of a tensor are an input of a program; its identity matters only to programs that read it.
        # Its shape is a number that programs may hold, whether they read the values or not.
        self._note(name, ("tensor", value.is_leaf and value.requires_grad, readers.form_of(value)))
        self.hold(name, value)

    def _environment(self) -> None:
        if readers.ENVIRONMENT not in self.found.arrays:
            self.found.arrays.append(readers.ENVIRONMENT)
            self._note("os.environ", readers.ENVIRONMENT.tobytes())

    def _array(self, name: str, value: Any) -> None:
        size = getattr(value, "size", 0)
        known = hasattr(value, "tobytes") and size <= MAX_ELEMENTS and not value.dtype.hasobject
        if known:
            self.found.arrays.append(value)
        self._note(name, (type(value), size, str(getattr(value, "dtype", "")), value.tobytes() if known else None))

    def _refers(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, types.FunctionType):
            self._function(name, value, depth)
        elif isinstance(value, types.MethodType):
            self.visit(name, value.__func__, depth + 1)
            self.visit(f"the object of {name}", value.__self__, depth + 1)
        elif isinstance(value, functools.partial):
            self.visit(name, value.func, depth + 1)
            self.visit(f"an argument of {name}", value.args, depth)
            self.visit(f"an argument of {name}", value.keywords, depth)
            self._attributes(name, value, depth)
        elif isinstance(value, type):
            self._class(name, value, depth)
        elif isinstance(value, dict):
            self._elements(name, value, dict.items(value), self.found.dicts, depth)
        elif isinstance(value, array):
            self.found.arrays.append(value)
            self._note(name, (value.typecode, value.tobytes()))
        elif isinstance(value, (list, set, deque, bytearray)):
            self._elements(name, value, enumerate(value), self.found.lists, depth)
        elif isinstance(value, (tuple, frozenset)):
            self._elements(name, value, enumerate(value), None, depth)
        elif isinstance(value, types.ModuleType):
            self._note(name, value.__name__)
        elif isinstance(value, types.MappingProxyType):
            known = value if len(value) <= MAX_ELEMENTS else ()
            self.found.readers += [(len, value), *((value.get, key) for key in known)]
            self._elements(name, value, value.items(), None, depth)
        elif isinstance(value, (contextvars.ContextVar, ref)):
            reader: Any = readers.in_this_context if isinstance(value, contextvars.ContextVar) else ref.__call__
            self.found.readers.append((reader, value))
            self.visit(name, reader(value), depth)
        elif isinstance(value, _CACHED):
            self.visit(name, value.__wrapped__, depth + 1)
        else:
            self._object(name, value, depth)

    def _elements(self, name: str, value: Any, items: Iterable, watched: list | None, depth: int) -> None:
        self._note(f"the length of {name}", (type(value), len(value)))
        if len(value) > MAX_ELEMENTS:
            return
        if watched is not None:
            watched.append(value)
        for key, element in items:
            if isinstance(key, str):
                self._note(name, key)
            self.visit(f"{name}[{key!r}]" if isinstance(key, (str, int)) else name, element, depth)

    def _children(self, name: str, value: dict, depth: int) -> None:
        """Parameters, buffers or submodules, named as users name them."""
        self.found.dicts.append(value)
        for key, element in value.items():
            self._note(name, key)
            self.visit(f"{name}.{key}", element, depth)

    def _object(self, name: str, value: Any, depth: int) -> None:
        self._note(name, type(value))
        if isinstance(value, nn.Module):
            self.found.modules.append(value)
        if not (
            isinstance(value, readers.MODELS) or dataclasses.is_dataclass(value) or is_users(type(value).__module__)
        ):
            if type(value).__module__ not in readers.HOLDERS:
                return
        self._attributes(name, value, depth)
        self.visit(name, type(value), depth)

    def _attributes(self, name: str, value: Any, depth: int) -> None:
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict):  # an object that stands for another may show that one's
            self.visit(f"the attributes of {name}", own, depth)
        else:
            left_out = self._left_out if isinstance(value, (ELBO, Messenger)) else frozenset()
            if left_out & own.keys():
                self.found.readers += [(own.get, attribute) for attribute in own if attribute not in left_out]
            else:
                self.found.attributes.append(own)
            kind, module = type(value), isinstance(value, nn.Module)
            for attribute, element in list(own.items()):
                if attribute == "_model" and isinstance(value, AutoGuide):
                    continue  # the model is a root of its own, with better names
                if attribute in left_out or isinstance(getattr(kind, attribute, None), lazy_property):
                    continue  # the latter is computed from the others, when it is first asked for
                inner = attribute in ("_parameters", "_buffers", "_modules") and module
                self._note(name, attribute)
                if inner and isinstance(element, dict):
                    self._children(name, element, depth)
                else:
                    self.visit(f"{name}.{attribute}", element, depth)
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__") and is_users(kind.__module__):
                    self.found.readers.append((functools.partial(readers.slot_of, value), slot))
                    self.visit(f"{name}.{slot}", getattr(value, slot, None), depth)

    def _class(self, name: str, value: type, depth: int) -> None:
        """The attributes of a class of the user, and of its bases; its methods, which other code calls by name."""
        self._note(name, value)
        for kind in value.__mro__:
            if not is_users(kind.__module__):
                continue
            for attribute, element in list(vars(kind).items()):
                element = getattr(element, "__func__", getattr(element, "fget", element))  # of static ones, properties
                function = isinstance(element, types.FunctionType)
                if function or not (attribute.startswith("__") or isinstance(element, types.GetSetDescriptorType)):
                    self.found.readers.append((vars(kind).get, attribute))
                    self.visit(f"{kind.__name__}.{attribute}", element, depth)

    def _function(self, name: str, value: types.FunctionType, depth: int) -> None:
        code = value.__code__
        self.found.functions.append(value)
        self._note(name, code)
        self.visit(f"a default of {value.__qualname__}", value.__defaults__, depth)
        self.visit(f"a default of {value.__qualname__}", value.__kwdefaults__, depth)
        for variable, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            try:
                element = cell.cell_contents
            except ValueError:
                continue  # not set yet
            self.found.cells.append(cell)
            self.visit(f"{variable!r} in the closure of {value.__qualname__}", element, depth)
        if vars(value):
            self.visit(name, vars(value), depth)
        if not is_users(value.__module__):
            return
        if reads_environment(code):
            self._environment()
        texts = names_as_text(code)
        for path in (*globals_of(code), *((name,) for name in texts & value.__globals__.keys())):
            self._global(path, value.__globals__, depth, texts)
        for module, names in imports_of(code):
            for attribute in names & vars(module).keys():
                self._global((attribute,), vars(module), depth)

    def _global(self, path: tuple[str, ...], values: Any, depth: int, texts: frozenset[str] = frozenset()) -> None:
        """A global, or an attribute of a module that is one: ``settings.noise``, or one named in ``texts``."""
        name, *rest = path
        self.found.readers.append((values.get, name))
        element = values.get(name)
        if isinstance(element, types.ModuleType):
            if is_users(element.__name__):
                for names in ([tuple(rest)] if rest else []) + [(one,) for one in texts & vars(element).keys()]:
                    self._global(names, vars(element), depth)
            return
        if element is not None or name in values:
            self.visit(f"the global {name!r}", element, depth)
