"""Compiled steps follow values in containers that are no dict or list: UserDict, ChainMap, context variables."""

from __future__ import annotations

import functools
import itertools
import logging
import operator
import random
import re
import sys
import threading
import types
import typing
import unittest.mock
import weakref
from collections import ChainMap, UserDict, UserList, defaultdict
from collections.abc import Generator
from contextvars import ContextVar
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import pytest

from pyro_vd.compiled.walk import surroundings_of

INNER = {"noise": 0.5}
VARIABLE = ContextVar("noise", default=0.5)
LOCAL = threading.local()


def holder(made):
    def model():
        return made

    return model


def add(made):
    made["other"] = 1.0


class Shows:
    """Stands for another object."""

    def __init__(self, attributes):
        object.__setattr__(self, "shown", MappingProxyType(attributes))

    @property
    def __dict__(self):
        return object.__getattribute__(self, "shown")

    __slots__ = ("shown",)


class Awkward:
    """Refuses what most objects do."""

    def refuse(self, *_):
        raise RuntimeError("no")

    __eq__ = __len__ = __bool__ = __iter__ = __getattr__ = refuse
    __hash__ = None


CHANGES = {
    "UserDict": (lambda: UserDict(noise=0.5), lambda made: made.update(noise=1.0)),
    "UserDict, another name": (lambda: UserDict(noise=0.5), add),
    "UserList": (lambda: UserList([0.5]), lambda made: made.__setitem__(0, 1.0)),
    "ChainMap": (lambda: ChainMap({"noise": 0.5}), lambda made: made.update(noise=1.0)),
    "ChainMap, a map before": (lambda: ChainMap({"noise": 0.5}), lambda made: made.maps.insert(0, {"noise": 1.0})),
    "MappingProxyType": (lambda: MappingProxyType(INNER), lambda made: INNER.update(noise=1.0)),
    "MappingProxyType, another name": (lambda: MappingProxyType(INNER), lambda made: add(INNER)),
    "MappingProxyType, nested": (
        lambda: MappingProxyType({"a": MappingProxyType(INNER)}),
        lambda made: INNER.update(noise=1.0),
    ),
    "ContextVar": (lambda: VARIABLE, lambda made: made.set(1.0)),
    "threading.local": (lambda: LOCAL, lambda made: setattr(made, "noise", 1.0)),
    "SimpleNamespace": (lambda: SimpleNamespace(noise=0.5), lambda made: setattr(made, "noise", 1.0)),
    "an object that shows another one's attributes": (lambda: Shows(INNER), lambda made: INNER.update(noise=1.0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_changes_the_key(name):
    make, change = CHANGES[name]
    INNER.clear()
    INNER["noise"] = LOCAL.noise = 0.5
    token = VARIABLE.set(0.5)
    try:
        roots = [("model", holder(make()))]
        before = surroundings_of(roots)
        assert before.unchanged() and surroundings_of(roots).key == before.key
        change(roots[0][1]())
        assert not before.unchanged()
        assert surroundings_of(roots).key != before.key
    finally:
        VARIABLE.reset(token)


class Pair(NamedTuple):
    first: int


ODD = {
    "list[int]": list[int],
    "Generator[int]": Generator[None, object, None],
    "Batch": tuple[Shows, ...],
    "int | None": int | None,
    "typing.List": typing.List[int],  # noqa: UP006
    "typing.Union": typing.Union[int, Shows],  # noqa: UP007
    "TypeVar": typing.TypeVar("T"),
    "NewType": typing.NewType("Name", int),
    "Literal": typing.Literal["a"],
    "code": holder.__code__,
    "cell": types.CellType(1),
    "unset cell": types.CellType(),
    "generator": (i for i in ()),
    "lock": threading.Lock(),
    "proxy": weakref.proxy(holder),
    "WeakKeyDictionary": weakref.WeakKeyDictionary({holder: 1}),
    "property": property(holder),
    "memoryview": memoryview(b"abc"),
    "iterator": iter([1]),
    "Ellipsis": ...,
    "pattern": re.compile("a"),
    "named tuple": Pair(1),
    "random": random.Random(1),
    "logger": logging.getLogger("a"),
    "mock": unittest.mock.Mock(),
    "attrgetter": operator.attrgetter("a"),
    "partialmethod": functools.partialmethod(holder, 1),
    "singledispatch": functools.singledispatch(holder),
    "count": itertools.count(),
    "file": sys.stderr,
    "awkward": Awkward(),
    "awkward, in a list": [Awkward()],
    "defaultdict": defaultdict(list, a=[1]),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_value_is_no_error(name):
    roots = [("model", holder(ODD[name]))]
    before = surroundings_of(roots)
    assert before.unchanged() and surroundings_of(roots).key == before.key
    hash(before.key)
