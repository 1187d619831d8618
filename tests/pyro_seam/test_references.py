"""Which modules a model refers to: every way in which code reaches a module, and what is not a reference."""

from __future__ import annotations

import functools
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn

import pyro_vd as vd
from pyro_vd.references import referenced_modules

NET = nn.Linear(2, 2)
OTHER = nn.Linear(2, 2)
HELD = types.SimpleNamespace(NET=NET, unused=OTHER)
LAYERS, TABLE = [NET, OTHER], {"first": (NET,), "second": {"inner": OTHER}}
LIBRARY = types.ModuleType("a_module_of_a_user")
LIBRARY.NET, LIBRARY.OTHER = NET, OTHER


def by_global(x):
    return NET(x)


def by_helper(x):
    return by_global(x)


def by_module(x):
    return LIBRARY.NET(x)


def by_attribute(x):
    return HELD.NET(x)


def by_default(x, net=NET):
    return net(x)


def by_keyword_default(x, *, net=NET):
    return net(x)


def by_argument(net, x):
    return net(x)


def by_inner_function(x):
    def inner():
        return [NET(one) for one in x]

    return inner()


def by_list(x):
    for layer in LAYERS:
        x = layer(x)


def by_dict(x):
    return TABLE["first"][0](x)


@functools.lru_cache
def decorated(x):
    return NET(x)


def wrapped(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


class Holder:
    def __init__(self):
        self.net, self.unused = NET, OTHER

    def model(self, x):
        return self._helper(x)

    def _helper(self, x):
        return self.net(x)

    def __call__(self, x):
        return self.chosen(x)

    @property
    def chosen(self):
        return self.net


class Hidden(PyroModule):
    """A module with another one that is none of its children."""

    def __init__(self):
        super().__init__()
        self.nets = [NET]

    def forward(self, x):
        return self.nets[0](x)


def closure():
    net = NET
    return lambda x: net(x)


def recursive():
    def first(x):
        return second(x)

    def second(x):
        return first(x) if x else NET(x)

    return first


HOLDER, HIDDEN, CHILDREN = Holder(), Hidden(), nn.Sequential(NET, nn.Sequential(OTHER))


def by_object(x):
    return HOLDER.model(x)


def by_part_and_whole(x):
    return CHILDREN[0](x) + NET(x)


WAYS = {
    "a module": (NET, [NET]),
    "a closure": (closure(), [NET]),
    "a global": (by_global, [NET]),
    "a function that is named": (by_helper, [NET]),
    "a Python module": (by_module, [NET]),
    "an attribute": (by_attribute, [NET]),
    "an attribute of an attribute": (lambda x: HOLDER.net.weight, [NET]),
    "a default": (by_default, [NET]),
    "a keyword default": (by_keyword_default, [NET]),
    "partial, by place": (functools.partial(by_argument, NET), [NET]),
    "partial, by name": (functools.partial(by_argument, net=NET), [NET]),
    "partial of two": (functools.partial(by_argument, NET, torch.ones(2)), [NET]),
    "partial of partial": (functools.partial(functools.partial(by_global)), [NET]),
    "an inner function": (by_inner_function, [NET]),
    "a list": (by_list, [NET, OTHER]),
    "a dict": (by_dict, [NET, OTHER]),
    "a decorator": (wrapped(by_global), [NET]),
    "a cached function": (decorated, [NET]),
    "a bound method": (HOLDER.model, [NET]),
    "a callable object": (HOLDER, [NET]),
    "a method of an object": (by_object, [NET]),
    "a bound method of a module": (NET.forward, [NET]),
    "a list in a module": (HIDDEN, [HIDDEN, NET]),
    "a handler": (poutine.block(by_global), [NET]),
    "handlers": (poutine.scale(poutine.block(functools.partial(by_argument, NET, 1)), scale=2.0), [NET]),
    "a handler around a module": (vd.lrt(NET), [NET]),
    "functions that call each other": (recursive(), [NET]),
    "a module and its part": (by_part_and_whole, [CHILDREN]),
    "no module": (lambda x: pyro.sample("x", dist.Normal(x, 1.0)) + torch.nn.functional.relu(x), []),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_refer_to_a_module(way):
    fn, expected = WAYS[way]
    found = referenced_modules(fn)
    assert len(found) == len(expected) and all(a is b for a, b in zip(found, expected, strict=True)), found


def test_a_variable_that_is_assigned_later_is_no_error():
    def model(x):
        return later(x)

    assert referenced_modules(model) == []
    later = NET
    assert referenced_modules(model) == [NET]


def test_a_global_of_the_name_of_an_attribute_is_no_reference():
    assert referenced_modules(lambda x: x.OTHER + HELD.NET(x)) == [NET]
