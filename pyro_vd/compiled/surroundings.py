"""What a loss reads besides its arguments: everything that a recording freezes, and whether it has changed.

A recording holds plain Python values as constants, and tensors by where they lie. So a program may be used as long as
the plain values are those of its key, and the tensors it reads are in the places where it found them. Both are looked
for in the attributes of the modules, in closures, defaults and globals of model and guide and of the functions they
call, and in lists, dicts and objects that these refer to.
"""

from __future__ import annotations

import enum
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, call, is_
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    types.NoneType,
    torch.dtype,
    torch.device,
    torch.Size,
    range,
    enum.Enum,
)
_FUNCTION = attrgetter("__code__", "__defaults__", "__kwdefaults__")
_CONTENTS, _NEEDS_GRADIENT = attrgetter("cell_contents"), attrgetter("requires_grad")


@dataclass(eq=False)
class Surroundings:
    """What :func:`pyro_vd.compiled.walk.surroundings_of` found, and how to see that it is all still there.

    :meth:`unchanged` compares every object by identity, in loops of C: a steady step has no time for more. Where it is
    False the surroundings are walked again, and may be found equal.

    Attributes:
        key: the plain values; equal for equal surroundings.
        names: for each entry of ``key``, where it is, for messages.
        tensors: the tensors, in the order of the walk.
        places: for each of ``tensors``, where it is.
    """

    key: tuple = ()
    names: list[str] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    dicts: list[dict] = field(default_factory=list)
    attributes: list[dict] = field(default_factory=list)  # dicts of objects: whose names stay as long as their values
    lists: list[Any] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)
    functions: list[Any] = field(default_factory=list)
    users: list[Any] = field(default_factory=list)  # those of the above that a user's code writes to
    arrays: list[Any] = field(default_factory=list)  # of NumPy, which programs hold as constants
    readers: list[tuple[Callable, Any]] = field(default_factory=list)  # ``reader(name)`` is a global, or an attribute

    def remember(self) -> Surroundings:
        """Changes are told from here on."""
        dicts = [*self.dicts, *self.attributes]
        self._empty = [one for one in (*dicts, *self.lists) if not _size(one)]
        self._named = [one for one in self.dicts if _size(one)]
        self._dicts = [one for one in dicts if _size(one)]
        self._lists = [one for one in self.lists if one]
        self._filled = [*self._dicts, *self._lists]
        self._read, self._read_names = [r for r, _ in self.readers], [name for _, name in self.readers]
        self._sizes = list(map(len, self._filled))
        self._names = list(chain.from_iterable(map(dict.keys, self._named)))
        self._keys = [list(dict.keys(one)) for one in self._dicts]
        self._objects = tuple(self._objects_now())
        self._bytes = [array.tobytes() for array in self.arrays]
        self._pointers = list(map(Tensor.data_ptr, self.tensors))
        self._flags = list(map(_NEEDS_GRADIENT, self.tensors))
        return self

    def unchanged(self) -> bool:
        """Whether every object is the one that was there, and every tensor where it was."""
        try:
            return (
                not any(self._empty)
                and self._sizes == list(map(len, self._filled))
                and all(map(is_, self._objects, self._objects_now()))
                and self._names == list(chain.from_iterable(map(dict.keys, self._named)))
                and (not self.arrays or self._bytes == [array.tobytes() for array in self.arrays])
                and self._pointers == list(map(Tensor.data_ptr, self.tensors))
                and self._flags == list(map(_NEEDS_GRADIENT, self.tensors))
            )
        except (ValueError, RuntimeError, TypeError):  # a variable of a closure that is gone; tensors as other keys
            return False

    def restore(self, plain: bool = True) -> None:
        """Put everything back in its place: contents of dicts, lists and closures; no values of tensors.

        Without ``plain``, numbers, texts and the like stay as a user's code has left them: a model that ran has run.
        """
        objects = iter(self._objects)
        for one in self._empty:
            if isinstance(one, dict):
                _refill(one, {} if plain or not self._is_users(one) else _as_left({}, one))
            elif plain or not (self._is_users(one) and _are_plain(one)):
                one.clear()
        for one, names in zip(self._dicts, self._keys, strict=True):
            before = {name: next(objects) for name in names}
            before = before if plain or not self._is_users(one) else _as_left(before, one)
            if _size(one) != len(before) or any(dict.get(one, k, one) is not value for k, value in before.items()):
                _refill(one, before)
        for one, size in zip(self._lists, self._sizes[len(self._dicts) :], strict=True):
            values = [next(objects) for _ in range(size)]
            if not plain and self._is_users(one) and _are_plain([*values, *one]):
                continue
            if len(one) != size or not all(map(is_, one, values)):
                one.clear()
                one.update(values) if isinstance(one, set) else one.extend(values)
        for cell in self.cells:
            value = next(objects)
            if plain or not (self._is_users(cell) and _are_plain([value, cell.cell_contents])):
                cell.cell_contents = value

    def _is_users(self, one: Any) -> bool:
        return any(one is other for other in self.users)

    def _objects_now(self) -> Iterable[Any]:
        return chain(
            chain.from_iterable(map(dict.values, self._dicts)),
            chain.from_iterable(self._lists),
            map(_CONTENTS, self.cells),
            chain.from_iterable(map(_FUNCTION, self.functions)),
            map(call, self._read, self._read_names),  # type: ignore[arg-type]
        )


# By the methods of dict itself: those of a subclass may take other arguments, compute, or register.
def _size(one: Any) -> int:
    return dict.__len__(one) if isinstance(one, dict) else len(one)


def _are_plain(values: Iterable[Any]) -> bool:
    return all(isinstance(value, PLAIN) for value in values)


def _as_left(before: dict, one: dict) -> dict:
    """What a dict held, but for the entries that are and were plain values, or were not there."""
    now = dict(dict.items(one))
    stay = {k: v for k, v in now.items() if _are_plain([v, before.get(k)])}
    return {k: v for k, v in before.items() if not _are_plain([v, now.get(k)])} | stay


def _refill(one: dict, contents: dict) -> None:
    kind: Any = OrderedDict if isinstance(one, OrderedDict) else dict  # the order is kept beside the dict
    kind.clear(one)
    for name, value in contents.items():
        kind.__setitem__(one, name, value)
