"""What Pyro asks of a distribution, of all those of this library: shapes, expansion, constraints, copies, words.

Written after Pyro's own suite, tests/distributions/test_distributions.py.
"""

from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, constraints

import pyro_vd as vd
from helpers.conformance import ONE_WEIGHT, POSTERIORS, ROWS, SHAPE, WITH_DENSITY, fixed, make


def test_every_distribution_has_a_row():
    classes = [value for value in vars(vd).values() if isinstance(value, type)]
    exported = {value for value in classes if issubclass(value, dist.Distribution)}
    assert exported == {cls for cls, _, _ in ROWS.values()} | {vd.ImproperLogUniform}


@pytest.mark.parametrize("row", ROWS)
def test_infer_shapes_are_those_of_an_instance(row):
    cls, arguments, _ = ROWS[row]
    q = make(row)
    batch_shape, event_shape = cls.infer_shapes(**{name: value.shape for name, value in arguments.items()})
    assert (batch_shape, event_shape) == (q.batch_shape, q.event_shape)
    assert isinstance(batch_shape, torch.Size) and isinstance(event_shape, torch.Size)
    tuples = cls.infer_shapes(**{name: tuple(value.shape) for name, value in arguments.items()})
    assert tuples == (q.batch_shape, q.event_shape)


@pytest.mark.parametrize("row", ROWS)
def test_arguments_satisfy_the_constraints_that_are_declared(row):
    cls, arguments, _ = ROWS[row]
    q = make(row)
    assert set(arguments) <= set(cls.arg_constraints)
    for name, constraint in cls.arg_constraints.items():
        assert isinstance(constraint, constraints.Constraint)
        assert bool(constraint.check(getattr(q, name)).all()), name
    if hasattr(q, "given"):
        assert list(q.given()) == [name for name in cls.arguments if name in arguments]


@pytest.mark.parametrize("row", ["DropoutNormal", "DropoutNormal, additive", "TruncatedLogUniform"])
def test_expansion(row):
    q = fixed(row)
    w, shape = q.sample(), torch.Size((4, *q.batch_shape))
    for expanded in (q.expand(shape), q.expand(list(shape)), q.expand(tuple(shape)), q.expand_by([4])):
        assert type(expanded) is type(q) and expanded.batch_shape == shape and expanded.event_shape == ()
        assert expanded.sample().shape == shape
        assert expanded.sample(torch.Size((2,))).shape == (2, *shape)
        torch.testing.assert_close(expanded.log_prob(w), q.log_prob(w).expand(shape))
        for moment in ("mean", "variance"):
            torch.testing.assert_close(getattr(expanded, moment).expand(shape), getattr(q, moment).expand(shape))
    assert q.expand(q.batch_shape).batch_shape == q.batch_shape
    again = q.expand(shape).expand(torch.Size((5, *shape)))
    assert again.batch_shape == (5, *shape) and again.sample().shape == (5, *shape)
    independent = q.expand(shape).to_event(2)
    assert isinstance(independent, Independent) and independent.event_shape == shape[1:]
    torch.testing.assert_close(independent.log_prob(w.expand(shape)), q.log_prob(w).sum((-2, -1)).expand(4))
    assert q.mask(False).log_prob(w).sum() == 0
    with pytest.raises(RuntimeError):
        q.expand(torch.Size((7, 5)))


@pytest.mark.parametrize("row", ONE_WEIGHT)
def test_expansion_of_one_weight(row):
    q = fixed(row)
    assert q.expand(torch.Size()).event_shape == SHAPE and q.to_event(0).event_shape == SHAPE
    with pytest.raises(ValueError, match=r"expected one weight, got a batch of shape \(4,\)"):
        q.expand(torch.Size((4,)))


@pytest.mark.parametrize("row", POSTERIORS)
def test_what_it_is_made_of_is_said(row):
    cls, arguments, more = ROWS[row]
    text = repr(fixed(row))
    assert text.startswith(f"{cls.__name__}(") and text.endswith(")") and "\n" not in text
    for name in arguments:
        assert f"{name}: (" in text
    for name, value in more.items():
        assert f"{name}={value!r}" in text
    assert repr(fixed(row, dtype=torch.float32)) == text


def test_repr_of_a_layer():
    q = vd.DropoutNormal(torch.zeros(300, 784), log_sigma2=torch.zeros(300, 784))
    assert repr(q) == "DropoutNormal(loc: (300, 784), log_sigma2: (300, 784), kl='sigmoid')"
    assert repr(vd.TruncatedLogUniform(0.1, 1.0).expand([2])) == "TruncatedLogUniform(low: (2,), high: (2,))"
    assert repr(vd.ImproperLogUniform().expand([2, 3])) == "ImproperLogUniform(batch_shape: (2, 3))"


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies_draw_the_same(row, duplicate):
    q = fixed(row)
    again = duplicate(q)
    torch.manual_seed(1)
    first = q.sample()
    torch.manual_seed(1)
    assert torch.equal(first, again.sample()) and repr(q) == repr(again)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_are_validated_where_it_is_asked_for(row, bad):
    cls, arguments, more = ROWS[row]
    for name in arguments:
        spoilt = {n: v.detach().clone() for n, v in arguments.items()}
        spoilt[name].view(-1)[-1] = bad
        words = "0 < low < high" if name in ("low", "high") else name
        with pytest.raises(ValueError, match=rf"{cls.__name__}: expected .*({words}).*, got "):
            cls(**spoilt, **more, validate_args=True)
    assert make(row, validate_args=True).sample().isfinite().all()
    assert make(row, validate_args=False)._validate_args is False


@pytest.mark.parametrize("row", WITH_DENSITY)
def test_a_value_of_nan_is_refused_where_pyro_validates(row):
    q = fixed(row)
    nothing = torch.full(q.shape(), math.nan).double()
    with pytest.raises(ValueError, match="(?i)expected value argument"):
        q.log_prob(nothing)
    with pytest.raises(ValueError, match="(?i)value is not broadcastable|must match"):
        q.log_prob(torch.zeros(7, 5, dtype=torch.float64))
    assert fixed(row, validate_args=False).log_prob(nothing).isnan().any() or row == "TruncatedLogUniform"
    with pytest.raises(ValueError, match="(?i)expected value argument"):
        vd.ImproperLogUniform().log_prob(torch.tensor(math.nan))
