"""Compiled steps follow shapes of tensors, plain values, caches, references and late imports. Exact."""

from __future__ import annotations

import datetime
import functools
import operator
import sys
import types
import weakref
from array import array
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import without_compiler
from pyro_vd.compiled.walk import surroundings_of

LATE = types.ModuleType("settings_of_a_test")


class Owner:
    noise = 0.5


def weakly(made):
    return holder(weakref.ref(made))


def change_noise(made):
    made.noise = 1.0


def holder(made):
    def model():
        return made

    return model


def imports_late():
    def model():
        import settings_of_a_test

        return (lambda: settings_of_a_test.noise)()

    return model


def cached(made):
    return holder(functools.lru_cache(holder(made)))


def first(made, value):
    made[0] = value


# What is made, what holds it, how it changes.
CHANGES = {
    "shape of a tensor": (lambda: [torch.ones(3)], holder, lambda made: first(made, torch.ones(6))),
    "dtype of a tensor": (lambda: [torch.ones(3)], holder, lambda made: first(made, torch.ones(3).double())),
    "shape in place": (lambda: torch.ones(3), holder, lambda made: made.resize_(6)),
    "Fraction": (lambda: [Fraction(1, 2)], holder, lambda made: first(made, Fraction(1))),
    "Decimal": (lambda: [Decimal("0.5")], holder, lambda made: first(made, Decimal(1))),
    "timedelta": (lambda: [datetime.timedelta(1)], holder, lambda made: first(made, datetime.timedelta(2))),
    "Path": (lambda: [Path("a")], holder, lambda made: first(made, Path("b"))),
    "slice": (lambda: [slice(0, 2)], holder, lambda made: first(made, slice(0, 3))),
    "bytearray": (lambda: bytearray(b"5"), holder, lambda made: first(made, 6)),
    "array": (lambda: array("d", [0.5]), holder, lambda made: first(made, 1.0)),
    "behind a cache": (lambda: [0.5], cached, lambda made: first(made, 1.0)),
    "behind a weak reference": (
        Owner,
        lambda made: holder(weakref.ref(made)),
        lambda made: setattr(made, "noise", 1.0),
    ),
    "imported when it runs": (lambda: LATE, lambda made: imports_late(), change_noise),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_changes_the_key(name, monkeypatch):
    make, hold, change = CHANGES[name]
    monkeypatch.setitem(sys.modules, LATE.__name__, LATE)
    LATE.noise = 0.5
    made = make()
    roots = [("model", hold(made))]
    before = surroundings_of(roots)
    assert before.unchanged() and surroundings_of(roots).key == before.key
    change(made)
    assert not before.unchanged()
    assert surroundings_of(roots).key != before.key


@pytest.mark.slow
def test_a_tensor_whose_shape_alone_is_read_is_followed_in_the_step_in_which_it_changes(monkeypatch):
    without_compiler(monkeypatch)
    torch.manual_seed(0)
    x, classes = torch.randn(12, 3), [torch.ones(2)]
    bnn = vd.BayesianModule(nn.Linear(3, 1), dist.Normal(0.0, 1.0))

    def model(x, y):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(40, len(x)):
            pyro.sample("y", dist.Normal(mean, classes[0].shape[0] / 4), obs=y)

    guide, elbo = vd.guides.AutoMeanField(model), vd.TraceVD_ELBO()
    svi = vd.CompiledSVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-3), elbo, strict=True)
    for step in range(8):
        if step == 6:
            classes[0] = torch.ones(6)
        torch.manual_seed(step)
        expected = elbo.loss(model, guide, x, x.sum(1)) if step else None
        torch.manual_seed(step)
        assert step == 0 or svi.step(x, x.sum(1)).item() == pytest.approx(expected, rel=1e-5), step
        if step == 0:
            svi.step(x, x.sum(1))


NOISE = 0.5
BY_TEXT = {
    "globals": lambda: globals()["NOISE"],
    "eval": lambda: eval("NOISE * 2"),
    "vars of this module": lambda: vars(sys.modules[__name__])["NOISE"],
    "getattr": lambda: getattr(LATE, "noise"),  # noqa: B009
    "vars": lambda: vars(LATE)["noise"],
    "__dict__": lambda: LATE.__dict__["noise"],
    "attrgetter": lambda: operator.attrgetter("noise")(LATE),
    "within": lambda: (lambda: getattr(LATE, "noise"))(),  # noqa: B009
}


@pytest.mark.parametrize("name", BY_TEXT)
def test_a_global_that_is_read_by_its_name_as_text(name, monkeypatch):
    monkeypatch.setattr(LATE, "noise", 0.5, raising=False)
    roots = [("model", BY_TEXT[name])]
    before = surroundings_of(roots)
    assert before.unchanged() and surroundings_of(roots).key == before.key
    monkeypatch.setattr(LATE, "noise", 1.0)
    monkeypatch.setattr(sys.modules[__name__], "NOISE", 1.0)
    assert not before.unchanged() and surroundings_of(roots).key != before.key


@pytest.mark.parametrize(
    "make", [list, lambda values: dict.fromkeys(map(str, values)), np.array], ids=["list", "dict", "array"]
)
def test_ten_thousand_values_are_followed(make):
    values = make(range(10_000))
    roots = [("model", holder(values))]
    before = surroundings_of(roots)
    values["9999" if isinstance(values, dict) else 9999] = -1
    assert not before.unchanged() and surroundings_of(roots).key != before.key
