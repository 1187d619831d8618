"""Dicts whose own methods are not those of dict, as transformers has them: watched, and put back by contents. Exact."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from pyro_vd.compiled.walk import surroundings_of


class Registry(dict):
    """Every method that a walk could use takes other arguments, or says something else."""

    def get(self, key):
        return super().get(key)

    def clear(self):
        raise AssertionError("cleared by the library")

    def update(self):
        raise AssertionError("updated by the library")

    def __setitem__(self, key, value):
        raise AssertionError("set by the library")

    def items(self):
        raise AssertionError("read by the library")

    keys = __iter__ = values = items

    def __len__(self):
        return 0


class Ordered(OrderedDict):
    def get(self, key):
        return super().get(key)


def holder(made):
    def model():
        return made

    return model


@pytest.mark.parametrize("make", [dict, OrderedDict, Registry, Ordered])
@pytest.mark.parametrize("change", ["set", "add", "remove", "nothing"])
def test_a_dict_of_another_kind_is_watched_and_put_back(make, change):
    made, kind = make(a=1, b=2), OrderedDict if issubclass(make, OrderedDict) else dict
    found = surroundings_of([("model", holder(made))])
    assert found.unchanged()
    if change == "set":
        kind.__setitem__(made, "a", 3)
    elif change == "add":
        kind.__setitem__(made, "c", 3)
    elif change == "remove":
        kind.__delitem__(made, "a")
    assert found.unchanged() == (change == "nothing")
    found.restore()
    assert found.unchanged() and list(dict.items(made)) == [("a", 1), ("b", 2)]
    assert list(kind.__iter__(made)) == ["a", "b"]


def test_what_was_empty_is_empty_again():
    made = Registry()
    found = surroundings_of([("model", holder(made))])
    dict.__setitem__(made, "a", 1)
    found.restore()
    assert dict.__len__(made) == 0
