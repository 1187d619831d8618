"""Plain values in containers of the standard library that are no dicts: a change is seen and changes the key. Exact."""

from __future__ import annotations

import threading
from collections import ChainMap, UserDict, UserList
from contextvars import ContextVar
from types import MappingProxyType, SimpleNamespace

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
