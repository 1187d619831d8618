"""What is known of the values in a net's code before it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

POSITIONS = re.compile(r"(^|_)pos($|_)|position")  # names of tensors that hold the positions of tokens


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a value before the net runs.

    Attributes:
        parameters: names of the parameters that it is made of.
        is_data: whether it depends on the inputs.
        is_position: whether it counts: 0, 1, 2, ...
        objects: the modules, functions and containers that it may be.
        exactly: the parameter, number, text or None that it is, alone in a tuple; empty where that is not known.
    """

    parameters: frozenset[str] = frozenset()
    is_data: bool = False
    is_position: bool = False
    objects: tuple[Any, ...] = ()
    exactly: tuple[Any, ...] = ()

    @property
    def is_weight(self) -> bool:
        return bool(self.parameters) and not self.is_data


class Bound(NamedTuple):
    """A function with the object that it is a method of."""

    function: Callable[..., Any]
    receiver: Any


class Super(NamedTuple):
    """What ``super()`` returns: an object whose attributes are looked up after one of its classes."""

    after: type
    receiver: Any


class Local(NamedTuple):
    """A function within a function."""

    node: Any
    frame: Any


def joined(values: Iterable[Value], with_objects: bool = False) -> Value:
    """A value that is made of all of these or, ``with_objects``, may be any of them."""
    values = list(values)
    objects: list[Any] = []
    for one in (one for value in values for one in value.objects) if with_objects else ():
        if not any(one is other for other in objects):
            objects.append(one)
    is_data = any(value.is_data for value in values)
    known = [one for value in values for one in value.exactly] if with_objects else []
    is_one = bool(known) and len(known) == len(values) and all(one is known[0] for one in known)
    return Value(
        frozenset().union(*(value.parameters for value in values)),
        is_data,
        any(value.is_position for value in values) and not is_data,
        tuple(objects),
        (known[0],) if is_one else (),
    )


def is_of_torch(thing: Any) -> bool:
    """Whether a class or function is one of PyTorch."""
    return (getattr(thing, "__module__", None) or "torch").partition(".")[0] == "torch"


def kind_of(module: nn.Module) -> type:
    """The class of a module; of a parametrized one, that from before."""
    return type_before_parametrizations(module)
