"""The nets of a model, found without running it: a guide knows their weights before it has seen data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
from numpyro.primitives import Messenger

from pyro_vd.numpyro.module import BayesianModule

_PLAIN = (type(None), type, jax.Array, str, bytes, int, float, complex)
# No function of theirs refers to a net of a user.
_LIBRARIES = {"jax", "jaxlib", "flax", "equinox", "quax", "numpyro", "optax", "numpy", "pyro_vd"}
_LIBRARIES |= set(sys.stdlib_module_names) - {"__main__"}


def known_weights(guide: str, model: Any, where: Callable[[str], bool] | None) -> dict[str, Any]:
    """Messages, as a trace has them, of the weights that a guide covers of every net that a model refers to, by site.

    A linen net that is not bound to its variables has none before its first call.

    Raises:
        ValueError: no such weight; two of these nets have weights of one name.
    """
    known: dict[str, Any] = {}
    for net in nets_of(model):
        messages = net.weight_messages()
        for site in messages.keys() & known.keys():
            raise ValueError(
                f"site {site!r}: expected every BayesianModule of a model to have a name of its own, got one named "
                f"{net.name!r} and another whose weights have the same names; write BayesianModule(..., name=...) for "
                "one of them"
            )
        known |= messages
    known = {site: message for site, message in known.items() if where is None or where(site)}
    if not known:
        raise ValueError(
            f"{guide}: expected a guide that has seen its model once, or a model with a BayesianModule of a bound net, "
            "got a new guide; call svi.init(rng_key, *args) with the arguments of the model first"
        )
    return known


def nets_of(program: Callable) -> list[BayesianModule]:
    """The BayesianModules that a program may call.

    The search goes through what the code of a function names (closure, defaults, globals, their attributes),
    ``functools.partial``, bound methods, effect handlers, and containers. It does not see a net that is made in the
    call, or that is looked up by a string.
    """
    found: list[BayesianModule] = []
    for net in _nets(program, (), []):
        if not any(net is other for other in found):
            found.append(net)
    return found


def forget_start(nets: Iterable[BayesianModule]) -> None:
    """Have linen nets that are not bound drawn again at their next call."""
    for net in nets:
        net.adapted.forget()
        if not net.adapted.owners:
            net.priors.clear()


def _nets(value: Any, names: tuple[str, ...], seen: list[Any]) -> Iterator[BayesianModule]:
    """What ``value`` refers to; an object does by its attributes and methods with one of the ``names``."""
    if isinstance(value, _PLAIN) or any(value is other for other in seen):
        return
    if isinstance(value, BayesianModule):
        yield value
    elif isinstance(value, ModuleType):
        if value.__name__.partition(".")[0] not in _LIBRARIES:
            for name in names:
                yield from _nets(vars(value).get(name), names, seen)
    elif isinstance(value, (list, tuple, set, frozenset, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _nets(part, names, seen)
    else:
        seen.append(value)
        yield from _nets_of_callable(value, names, seen)


def _nets_of_callable(value: Any, names: tuple[str, ...], seen: list[Any]) -> Iterator[BayesianModule]:
    if isinstance(value, Messenger):  # an effect handler around a program
        yield from _nets(value.fn, names, seen)
    elif isinstance(value, functools.partial):
        yield from _nets((value.func, value.args, value.keywords), names, seen)
    elif isinstance(value, MethodType):
        code = getattr(value.__func__, "__code__", None)
        yield from _nets(value.__func__, names, seen)
        yield from _members(value.__self__, (*names, *(_names(code) if code else ()), "__call__"), seen)
    elif isinstance(value, FunctionType):
        if (value.__module__ or "").partition(".")[0] in _LIBRARIES and not hasattr(value, "__wrapped__"):
            return
        read = tuple(_names(value.__code__))
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
        globals_ = [value.__globals__[name] for name in read if name in value.__globals__]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for part in (*cells, *defaults, *globals_, getattr(value, "__wrapped__", None)):
            yield from _nets(part, read, seen)
    elif hasattr(value, "__wrapped__"):  # of jax.jit
        yield from _nets(value.__wrapped__, names, seen)
    else:
        yield from _members(value, (*names, "__call__"), seen)


def _members(owner: Any, names: tuple[str, ...], seen: list[Any]) -> Iterator[BayesianModule]:
    """What the attributes, methods and properties of an object with these names refer to."""
    if (type(owner).__module__ or "").partition(".")[0] in _LIBRARIES:
        return
    for name in dict.fromkeys(names):
        member = getattr(type(owner), name, None)
        function = member.fget if isinstance(member, property) else member
        if isinstance(function, FunctionType) and not any(function is other for other in seen):
            yield from _nets(function, names, seen)
            yield from _members(owner, tuple(_names(function.__code__)), seen)
        yield from _nets(getattr(owner, "__dict__", {}).get(name), names, seen)


def _names(code: CodeType) -> Iterator[str]:
    """The globals and attributes that a piece of code and the functions in it name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # of a variable that is assigned later
        return False
    return True
