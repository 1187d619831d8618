"""Compiled steps follow values that lie deep, and the environment; what lies deeper still is said. Exact."""

from __future__ import annotations

import os
import warnings
from os import environ, getenv

import pytest

from pyro_vd.compiled.walk import DEPTH, surroundings_of

NAME = "PYRO_VD_NOISE_OF_A_TEST"


class Node:
    def __init__(self, inner):
        self.inner = inner


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


HOLDERS = {
    "list": lambda inner: [inner],
    "dict": lambda inner: {"a": inner},
    "tuple": lambda inner: (inner,),
    "object": Node,
    "slots": Slotted,
    "function": lambda inner: lambda: inner,
}


def nested(kind, deep):
    changed = [0.5]
    value = changed
    for _ in range(deep):
        value = HOLDERS[kind](value)
    return changed, [("the model", lambda: value)]


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_value_behind_20_objects_is_followed(kind):
    changed, roots = nested(kind, 20 if kind != "object" else 15)  # of which each has a dict
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = surroundings_of(roots)
    assert before.unchanged()
    changed[0] = 1.0
    assert not before.unchanged() and surroundings_of(roots).key != before.key


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_lies_deeper_is_said(kind):
    _, roots = nested(kind, DEPTH + 1)
    with pytest.warns(UserWarning, match=rf"at most {DEPTH} references from model, guide and loss.*Keep what changes"):
        surroundings_of(roots)


def by_attribute():
    return float(os.environ[NAME])


def by_name():
    return float(environ[NAME])


def by_getenv():
    return (lambda: float(getenv(NAME)))()


def imported_late():
    import os as system

    return float(system.environ.get(NAME))


class Held:
    def __init__(self):
        self.settings = os.environ

    def __call__(self):
        return float(self.settings[NAME])


@pytest.mark.parametrize("read", [by_attribute, by_name, by_getenv, imported_late, Held()])
def test_the_environment_is_followed(read, monkeypatch):
    monkeypatch.setenv(NAME, "0.5")
    before = surroundings_of([("the model", read)])
    assert before.unchanged()
    monkeypatch.setenv(NAME, "1.0")
    assert not before.unchanged() and surroundings_of([("the model", read)]).key != before.key


def test_a_model_that_does_not_read_the_environment_stays_compiled(monkeypatch):
    before = surroundings_of([("the model", lambda: 0.5)])
    monkeypatch.setenv(NAME, "1.0")
    assert before.unchanged()
