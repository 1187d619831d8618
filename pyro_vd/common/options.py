"""Arguments checked where they are given: names, numbers, counts and choices; nothing here needs an array library.

Every error has four parts, "argument: expected this, got that; write this instead". ``owner`` is what the argument
belongs to, where its name alone would not say so.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable
from numbers import Number, Real
from typing import Any, Literal, get_args

LogUniformKL = Literal["sigmoid", "cubic", "lower_bound", "exact"]
NormalKL = Literal["sigmoid", "cubic", "lower_bound", "exact", "ard"]
Estimator = Literal["local", "shared", "per_example", "flipout"]
Reuse = Literal["error", "independent"]

LOG_UNIFORM_METHODS: tuple[LogUniformKL, ...] = get_args(LogUniformKL)  # of the KL to the log-uniform prior
KL_METHODS: tuple[NormalKL, ...] = get_args(NormalKL)  # "ard" fits the prior to each weight


class NoDensity(NotImplementedError, ValueError):
    """A ``log_prob`` that does not exist, as in Pyro and NumPyro; a ValueError too, as every refusal here."""


def check_choice(name: str, value: Any, choices: Iterable[str], owner: str = "") -> Any:
    """The value, or ValueError unless it is one of the ``choices``."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{_expected(name, owner)} one of {', '.join(map(repr, choices))}, got {shown(value)}")
    return value


def check_path(value: Any, owner: str) -> Any:
    """The value, or TypeError unless it is the path of a file: text that is not empty, or an ``os.PathLike``."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise TypeError(f"{owner}: expected path to be that of a file, got {shown(value)}; write 'net.safetensors'")
    return value


def check_flag(name: str, value: Any) -> bool:
    """The value, or TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return value


def check_callable(name: str, value: Any, what: str, instead: str, owner: str = "") -> Any:
    """The value, or TypeError unless it is an instance that can be called; a class is refused."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{_expected(name, owner)} {what}, got {shown(value)}; {instead}")
    return value


def check_count(name: str, value: Any, least: int | None = None, owner: str = "") -> int:
    """The whole number as an int, or ValueError; a float or a truth value is refused, an integer of NumPy is not."""
    if type(value) is int:
        number = value
    else:
        try:
            number = None if _is_truth_value(value) else operator.index(value)
        except TypeError:
            number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" >= {least}"
        raise ValueError(f"{_expected(name, owner)} a whole number{bound}, got {shown(value)}")
    return number


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
    why: str = "",
    owner: str = "",
) -> float:
    """The number as a float, or ValueError where it is not a number, NaN, infinite or out of bounds.

    Args:
        name: of the argument.
        value: a number of Python or NumPy, or an array of no dimensions.
        at_least, above, at_most: its bounds.
        finite: whether infinity is refused too.
        why: the meaning of the bound, in parentheses.
        owner: what the argument belongs to.
    """
    number = as_number(value)
    good = number is not None and not math.isnan(number) and (not finite or math.isfinite(number))
    good = good and number is not None and (at_least is None or number >= at_least)
    good = good and number is not None and (above is None or number > above)
    if number is None or not good or (at_most is not None and number > at_most):
        bounds = ((">=", at_least), (">", above), ("<=", at_most))
        bound = "".join(f" {sign} {limit:g}" for sign, limit in bounds if limit is not None)
        bounded = bound and number is not None and math.isfinite(number)  # then the error is not about finiteness
        kind = "a finite number" if finite and not (bounded and why) else "a number"
        what = f"{owner}: expected {name} to be {kind}" if owner else f"{name}: expected {kind}"
        if owner and bounded:
            what = f"{owner}: expected {name}"
        reason = f" ({why})" if why else ""
        raise ValueError(f"{what}{bound}{reason}, got {'nan' if number != number else shown(value)}")
    return number


def check_threshold(name: str, value: Any) -> float:
    """A bound on log_alpha: any number but NaN, infinity for "none" and "all"."""
    return check_number(name, value, finite=False, why="the natural log of a noise ratio")


def check_dropout_rate(owner: str, rate: Any) -> float:
    """The rate, or an error that names ``owner``."""
    number = as_number(rate)
    if number is None or not 0 <= number < 1:
        raise ValueError(
            f"{owner}: expected dropout_rate in [0, 1), the probability of dropping, got {shown(rate)}; a probability "
            "of keeping is 1 - dropout_rate"
        )
    return number


def check_rank(owner: str, rank: Any, weights: int) -> int:
    """The rank, or an error that names ``owner`` unless ``1 <= rank <= weights``."""
    number = check_count("rank", rank, owner=owner)
    if not 1 <= number <= weights:
        raise ValueError(f"{owner}: expected a rank between 1 and the {weights} weights of the layer, got {rank}")
    return number


def check_names(name: str, value: Any) -> tuple[str, ...]:
    """Several names as a tuple, or TypeError; a bare string is none, since it would be read letter by letter."""
    if isinstance(value, str):
        raise TypeError(f"{name}: expected a list of site names, got {value!r}; write [{value!r}]")
    if not isinstance(value, Collection) or is_scalar(value) or not all(isinstance(one, str) for one in value):
        raise TypeError(f'{name}: expected a list of site names, got {shown(value)}; write ["net.0.weight"]')
    return tuple(value)


def check_site_names(name: str, sites: Iterable[Any]) -> None:
    """TypeError unless every key of a dict from sites is text: the place of a weight in a list is no name."""
    for site in sites:
        if not isinstance(site, str):
            raise TypeError(f'{name}: expected the names of sites for keys, got {shown(site)}; write "net.0.weight"')


def check_known(name: str, given: Iterable[str], known: Iterable[str], what: str = "sites", instead: str = "") -> None:
    """ValueError for a name that there is not, with those that there are."""
    known = list(known)
    unknown = [one for one in given if one not in known]
    if unknown:
        cure = instead or f"correct the names of {unknown}, or leave them out"
        raise ValueError(f"{name}: expected names among the {what} {known}, got {unknown}; {cure}")


def as_number(value: Any) -> float | None:
    """A real number as a float; None for anything else, truth values and strings too."""
    if _is_truth_value(value):
        return None
    if isinstance(value, Real) or (getattr(value, "ndim", None) == 0 and not isinstance(value, Number)):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # complex numbers, arrays without values
            return None
    return None


def is_scalar(value: Any) -> bool:
    """Whether a value is an array of no dimensions, which looks like a collection and has no elements."""
    return getattr(value, "ndim", None) == 0


def kind_of(value: Any) -> str:
    """What a value is, in words for an error."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    library = type(value).__module__.partition(".")[0]
    name = type(value).__name__
    kind = name if library in ("builtins", "pyro_vd", "__main__") else f"{library}'s {name}"
    dtype = getattr(value, "dtype", None)
    return f"{kind} of {dtype}" if dtype is not None else kind


def shown(value: Any) -> str:
    """A value in an error: itself where that is short, otherwise what it is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype"):
        one = as_number(value)
        kind = f"{type(value).__module__.partition('.')[0]} {type(value).__name__}"
        return f"{one:g}" if one is not None else f"a {kind} of shape {tuple(shape)} and dtype {value.dtype}"
    if value is None or isinstance(value, (str, bytes, Number)) or _is_short(value):
        return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return f"a value of type {type(value).__name__}"


def _is_short(value: Any) -> bool:
    plain = (str, Number, type(None))
    return isinstance(value, (list, tuple, set, dict)) and len(value) <= 8 and all(isinstance(v, plain) for v in value)


def _is_truth_value(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _expected(name: str, owner: str) -> str:
    return f"{owner}: expected {name} to be" if owner else f"{name}: expected"
