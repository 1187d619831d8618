"""Checks of arguments by themselves: what is taken, what is refused, and the words of each refusal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_vd.common import options as o

NAN, INF = math.nan, math.inf
NO_NUMBERS = ["3", None, [3.0], np.ones(2), torch.ones(2), True, np.bool_(True), torch.tensor(True), 1j, object(), int]


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3), np.array(3.0), torch.tensor(3.0)])
def test_numbers_of_every_library_are_numbers(value):
    assert o.check_number("x", value) == 3.0 and isinstance(o.check_number("x", value), float)
    assert o.check_threshold("x", value) == 3.0


@pytest.mark.parametrize("value", [*NO_NUMBERS, NAN, np.float32(NAN), torch.tensor(NAN), INF, -INF])
def test_what_is_no_finite_number(value):
    with pytest.raises(ValueError, match="x: expected a finite number, got "):
        o.check_number("x", value)


def test_bounds_are_those_of_the_words():
    assert o.check_number("x", 0, at_least=0) == 0 and o.check_number("x", 0, at_most=0) == 0
    assert o.check_number("x", INF, finite=False) == INF
    for value, keywords, words in [
        (-1, {"at_least": 0}, "x: expected a finite number >= 0, got -1"),
        (0, {"above": 0}, "x: expected a finite number > 0, got 0"),
        (0.5, {"at_most": 0, "why": "alpha <= 1"}, "x: expected a number <= 0 (alpha <= 1), got 0.5"),
        (0, {"above": 0, "owner": "Thing"}, "Thing: expected x > 0, got 0"),
        (INF, {"above": 0, "owner": "Thing"}, "Thing: expected x to be a finite number > 0, got inf"),
        (NAN, {"finite": False}, "x: expected a number, got nan"),
    ]:
        with pytest.raises(ValueError) as caught:
            o.check_number("x", value, **keywords)
        assert str(caught.value) == words


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_counts_of_every_library(value):
    count = o.check_count("x", value, 3)
    assert count == 3 and type(count) is int


@pytest.mark.parametrize("value", [True, 2.5, 3.0, "3", None, np.float64(3), torch.tensor(3.0), np.bool_(True), [3]])
def test_what_is_no_count(value):
    with pytest.raises(ValueError, match="x: expected a whole number >= 1, got"):
        o.check_count("x", value, 1)


def test_counts_below_the_least():
    with pytest.raises(ValueError, match="Thing: expected x to be a whole number >= 2, got 1"):
        o.check_count("x", 1, 2, "Thing")
    assert o.check_count("x", -5) == -5


@pytest.mark.parametrize("value", ["c", "", "A", None, 1, ["a"], b"a"])
def test_choices(value):
    assert o.check_choice("x", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="x: expected one of 'a', 'b', got"):
        o.check_choice("x", value, ("a", "b"))


@pytest.mark.parametrize("value", [1.0, -0.1, NAN, INF, "0.5", None, True, [0.5], np.float32(1.5), torch.tensor(1.0)])
def test_dropout_rates(value):
    assert o.check_dropout_rate("T", np.float32(0.5)) == 0.5 and o.check_dropout_rate("T", 0) == 0.0
    with pytest.raises(ValueError, match=r"T: expected dropout_rate in \[0, 1\), the probability of dropping, got"):
        o.check_dropout_rate("T", value)


@pytest.mark.parametrize("value", [0, 7, -1, 2.0, True, None])
def test_ranks(value):
    assert o.check_rank("T", np.int32(6), 6) == 6
    with pytest.raises(ValueError, match="T: expected (a rank between 1 and the 6 weights|rank to be a whole)"):
        o.check_rank("T", value, 6)


def test_names():
    assert o.check_names("x", {"a": 1}) == ("a",) and o.check_names("x", ()) == ()
    with pytest.raises(TypeError, match=r"x: expected a list of site names, got 'label'; write \['label'\]"):
        o.check_names("x", "label")
    for value in (3, None, [1], iter(["a"])):
        with pytest.raises(TypeError, match="x: expected a list of site names, got"):
            o.check_names("x", value)
    o.check_known("x", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"x: expected names among the sites \['a', 'b'\], got \['c'\]; correct"):
        o.check_known("x", ["a", "c"], ["a", "b"])


def test_flags_and_callables():
    assert o.check_flag("x", False) is False
    for value in (1, None, "yes", np.bool_(True)):
        with pytest.raises(TypeError, match="x: expected True or False, got"):
            o.check_flag("x", value)
    assert o.check_callable("x", len, "a function", "write it") is len
    for value in (None, 3, "f", int):
        with pytest.raises(TypeError, match="x: expected a function, got .*; write it"):
            o.check_callable("x", value, "a function", "write it")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        ("a" * 100, "aaa..."),
        (torch.ones(2, 3), r"a torch Tensor of shape \(2, 3\) and dtype torch.float32"),
        (np.ones(2), r"a numpy ndarray of shape \(2,\) and dtype float64"),
        (np.float32(1.5), "1.5"),
        (int, "the class int"),
        (object(), "a value of type object"),
        ([1, 2], r"\[1, 2\]"),
        (list(range(100)), "a value of type list"),
    ],
)
def test_what_came_is_shown_in_few_words(value, words):
    import re

    assert re.search(words, o.shown(value)) and len(o.shown(value)) <= 80
