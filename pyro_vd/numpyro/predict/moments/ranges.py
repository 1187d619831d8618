"""The range of a function over all real numbers, which tells whether it has a pole or a gap.

    1 / (1 + exp(-x))    exp in [0, inf), 1 + exp in [1, inf): the divisor is never 0
    1 / (1 + x)          the divisor may be 0: the mean does not exist

A quadrature gives numbers for both. A range that is not known is the whole line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import Literal

Range = tuple[float, float]
_LINE: Range = (-math.inf, math.inf)


def is_defined(body: Any, arguments: Sequence[Any], place: int) -> bool:
    """Whether a traced function has a value for every real number: no pole, no logarithm or root of too little.

    Args:
        body: the function.
        arguments: what it is called with.
        place: of the argument that may be any number.
    """
    ranges = [_LINE if i == place else _of_constant(one) for i, one in enumerate(arguments)]
    return _ranges(body, ranges, [i == place for i in range(len(ranges))]) is not None


def is_without_zero(function: Callable[[Any], Any], like: Any) -> bool:
    """Whether a function of each element is defined, and never 0.

    Args:
        like: an array of the shape and type of its argument.
    """
    found = _ranges(jax.make_jaxpr(function)(like), [_LINE], [True])
    return found is not None and _without_zero(found[0])


def _ranges(body: Any, inputs: Sequence[Range], free: Sequence[bool]) -> list[Range] | None:
    """The ranges of the results; None where something is not defined. ``free`` says which inputs may be anything."""
    jaxpr = body.jaxpr
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known.update({v: _of_constant(c) for v, c in zip(jaxpr.constvars, body.consts, strict=True)})
    random = {v for v, one in zip(jaxpr.invars, free, strict=True) if one}

    def of(v: Any) -> Range:
        return _of_constant(v.val) if isinstance(v, Literal) else known.get(v, _LINE)

    for equation in jaxpr.eqns:
        ranges = [of(v) for v in equation.invars]
        moved = [not isinstance(v, Literal) and v in random for v in equation.invars]
        random.update(equation.outvars if any(moved) else ())
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if hasattr(inner, "jaxpr"):
            results = _ranges(inner, ranges, moved)
            if results is None:
                return None
            known.update(zip(equation.outvars, results, strict=True))
            continue
        place, domain = _DOMAINS.get(equation.primitive, (0, None))
        defined = domain is None or domain(equation.params, *ranges)
        if not defined and moved[place]:
            return None
        # A constant that is not known yet, such as a divisor, is not checked.
        result = _range(equation, ranges) if defined else _LINE
        known.update({v: _LINE if any(map(math.isnan, result)) else result for v in equation.outvars})
    return [of(v) for v in jaxpr.outvars]


def _range(equation: Any, ranges: Sequence[Range]) -> Range:
    same = len(equation.invars) == 2 and equation.invars[0] is equation.invars[1]
    if equation.primitive is lax.ne_p and same:
        return 0.0, 0.0  # no NaN
    if equation.primitive is lax.mul_p and same:
        return _power({"y": 2}, ranges[0])
    rule = _RULES.get(equation.primitive)
    return _LINE if rule is None else rule(equation.params, *ranges)


def _of_constant(value: Any) -> Range:
    if isinstance(value, Tracer) or not np.size(value):
        return _LINE
    values = np.asarray(value, dtype=float)
    low, high = float(values.min()), float(values.max())
    return _LINE if math.isnan(low) or math.isnan(high) else (low, high)


def _without_zero(a: Range) -> bool:
    return a[0] > 0 or a[1] < 0


def _product(_: Any, a: Range, b: Range) -> Range:
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def _quotient(_: Any, a: Range, b: Range) -> Range:
    ends = sorted(0.0 if math.isinf(end) else 1 / end for end in b)  # b is without 0
    return _product(_, a, (ends[0], ends[1]))


def _power(params: Any, a: Range) -> Range:
    if params["y"] % 2 == 0 and params["y"] > 0:
        ends = sorted(_product(None, (abs(end), abs(end)), (abs(end), abs(end)))[0] for end in a)
        # Of a square; of a higher even power only the sign is known.
        low = 0.0 if a[0] <= 0 <= a[1] or params["y"] != 2 else ends[0]
        return low, ends[1] if params["y"] == 2 else math.inf
    return (0.0, math.inf) if a[0] >= 0 else _LINE


def _exp(end: float) -> float:
    return math.exp(end) if end < 700 else math.inf


def _monotone(function: Callable[[float], float]) -> Callable[..., Range]:
    return lambda _, a: (function(a[0]), function(a[1]))


def _between(low: float, high: float) -> Callable[..., Range]:
    return lambda _, *others: (low, high)


def _absolute(_: Any, a: Range) -> Range:
    low = 0.0 if a[0] <= 0 <= a[1] else min(map(abs, a))
    return low, max(map(abs, a))


def _cases(_: Any, which: Range, *cases: Range) -> Range:
    if which[0] == which[1]:
        return cases[int(which[0])]
    return min(a for a, _ in cases), max(b for _, b in cases)


def _same(_: Any, a: Range, *others: Range) -> Range:
    return a


# The conditions on operands under which an operation is defined.
_DOMAINS: dict[Any, tuple[int, Callable[..., bool]]] = {
    lax.div_p: (1, lambda _, a, b: _without_zero(b)),
    lax.log_p: (0, lambda _, a: a[0] > 0),
    lax.log1p_p: (0, lambda _, a: a[0] > -1),
    lax.sqrt_p: (0, lambda _, a: a[0] >= 0),
    lax.rsqrt_p: (0, lambda _, a: a[0] > 0),
    lax.integer_pow_p: (0, lambda params, a: params["y"] >= 0 or _without_zero(a)),
    lax.pow_p: (0, lambda _, a, b: a[0] > 0 or (a[0] >= 0 and b[0] >= 0)),
}
# The range of a result, by the parameters of an operation and the ranges of its operands.
_RULES: dict[Any, Callable[..., Range]] = {
    lax.add_p: lambda _, a, b: (a[0] + b[0], a[1] + b[1]),
    lax.sub_p: lambda _, a, b: (a[0] - b[1], a[1] - b[0]),
    lax.neg_p: lambda _, a: (-a[1], -a[0]),
    lax.mul_p: _product,
    lax.div_p: _quotient,
    lax.max_p: lambda _, a, b: (max(a[0], b[0]), max(a[1], b[1])),
    lax.min_p: lambda _, a, b: (min(a[0], b[0]), min(a[1], b[1])),
    lax.clamp_p: lambda _, low, x, high: (max(low[0], min(x[0], high[0])), min(high[1], max(x[1], low[1]))),
    lax.abs_p: _absolute,
    lax.square_p: lambda _, a: _power({"y": 2}, a),
    lax.integer_pow_p: _power,
    lax.exp_p: _monotone(_exp),
    lax.expm1_p: _monotone(lambda end: _exp(end) - 1),
    lax.log_p: _monotone(lambda end: math.log(end) if end < math.inf else end),
    lax.log1p_p: _monotone(lambda end: math.log1p(end) if end < math.inf else end),
    lax.sqrt_p: _monotone(math.sqrt),
    lax.tanh_p: _between(-1.0, 1.0),
    lax.logistic_p: _between(0.0, 1.0),
    lax.erf_p: _between(-1.0, 1.0),
    lax.erfc_p: _between(0.0, 2.0),
    lax.sin_p: _between(-1.0, 1.0),
    lax.cos_p: _between(-1.0, 1.0),
    lax.cosh_p: _between(1.0, math.inf),
    lax.rsqrt_p: _between(0.0, math.inf),
    lax.pow_p: _between(0.0, math.inf),
    lax.select_n_p: _cases,
    lax.convert_element_type_p: _same,
    lax.copy_p: _same,
    lax.broadcast_in_dim_p: _same,
}
