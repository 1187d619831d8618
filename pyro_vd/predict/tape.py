"""A run as the list of its operations on tensors, to be run again on other weights without Python between them.

Guide, model and handlers take a millisecond a run, and a block of draws side by side leaves the cache of the processor.
The operations alone, one draw at a time, do neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode  # torch/utils/_python_dispatch.py
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vd._torch import share_storage, tree_leaves, tree_map

_aten = torch.ops.aten
# An operation whose input nothing else needs writes its result there.
_IN_PLACE = {
    _aten.relu.default: _aten.relu_.default,
    _aten.tanh.default: _aten.tanh_.default,
    _aten.sigmoid.default: _aten.sigmoid_.default,
}


class NotOnTape(Exception):
    """Raised by an operation that cannot be run again by itself."""


@dataclass(frozen=True)
class Place:
    """Where the value of a tensor is kept while a tape runs."""

    number: int


@dataclass
class Step:
    """One operation.

    Args:
        function: the operation.
        args, kwargs: its arguments, with places for tensors that other steps make.
        results: the numbers of the places of its results.
        last: places that no later step needs.
    """

    function: Any
    args: list[Any]
    kwargs: dict[str, Any]
    results: list[int]
    last: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = [(i, arg.number) for i, arg in enumerate(self.args) if isinstance(arg, Place)]
        self.inside = [i for i, arg in enumerate(self.args) if not isinstance(arg, Place) and _places(arg)]
        self.named = bool(_places(self.kwargs))

    def needed(self) -> list[int]:
        return _places((self.args, self.kwargs))

    def run(self, values: list[Any]) -> None:
        args, kwargs = self.args.copy(), self.kwargs
        for i, number in self.own:
            args[i] = values[number]
        for i in self.inside:
            args[i] = _filled(args[i], values)
        found = self.function(*args, **(_filled(kwargs, values) if self.named else kwargs))
        tensors = [found] if isinstance(found, Tensor) else _tensors(found)
        for number, tensor in zip(self.results, tensors, strict=True):
            values[number] = tensor
        for number in self.last:
            values[number] = None


class Tape(TorchDispatchMode):
    """Records the operations of the run inside it.

    It is valid for another run if that runs the same Python: if nothing there looks at a value that differs between
    draws, as a run under ``torch.vmap`` shows. Every operation is run again, also those on constants: they may be
    written to.

    Args:
        inputs: tensors that differ between runs.

    Raises:
        NotOnTape: by an operation that writes to a tensor from outside, meets one that is an input under another
            name (``torch.nn.Parameter(weight)``), is not on a CPU, or is of a type with rules of its own.
    """

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.places = WeakTensorKeyDictionary()
        self.number = 0
        self.steps: list[Step] = []
        self.outside: list[Tensor] = []
        self.inputs = [self._new(tensor) for tensor in inputs]
        self.results: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this PyTorch imports its compiler at the first operation, which takes longer than a prediction."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, named = tree_map(self._place, list(args)), tree_map(self._place, kwargs)
        if func._schema.is_mutable:
            self._check_written(func, args, kwargs)
        found = func(*args, **kwargs)
        tensors = _tensors(found)
        if tensors or func._schema.is_mutable:
            self.steps.append(Step(func, given, named, [self._new(tensor) for tensor in tensors]))
        return found

    def finish(self, results: Sequence[Tensor]) -> None:
        """Keep these of the run, and nothing else for longer than it is needed."""
        self.results = [self._place(tensor) for tensor in results]
        self.steps = _without_dead(self.steps, set(_places(self.results)))
        later = set(_places(self.results))
        single = _used_once(self.steps, later)
        fresh: set[int] = set()
        for step in self.steps:
            if step.function in _IN_PLACE and step.needed() and step.needed()[0] in single & fresh:
                step.function = _IN_PLACE[step.function]
            elif _is_new(step.function._schema):
                fresh.update(step.results)
        for step in reversed(self.steps):
            step.last = [number for number in {*step.needed(), *step.results} if number not in later]
            later.update(step.last)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results at other inputs, and at new noise."""
        values: list[Any] = [None] * self.number
        for number, tensor in zip(self.inputs, inputs, strict=True):
            values[number] = tensor
        for step in self.steps:
            step.run(values)
        return _filled(self.results, values)

    def _new(self, tensor: Tensor) -> int:
        if tensor not in self.places:
            self.places[tensor] = self.number
            self.number += 1
        return self.places[tensor]

    def _place(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value in self.places:
            return Place(self.places[value])
        if all(value is not known for known in self.outside):
            if type(value) not in (Tensor, Parameter) or not value.is_cpu:
                raise NotOnTape
            if any(share_storage(value, known) for known in self.places):
                raise NotOnTape
            self.outside.append(value)
        return value

    def _check_written(self, func: Any, args: Any, kwargs: Any) -> None:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(given.get(argument.name)):
                    if any(share_storage(tensor, known) for known in self.outside):
                        raise NotOnTape


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _places(values: Any) -> list[int]:
    return [value.number for value in tree_leaves(values) if isinstance(value, Place)]


def _filled(template: Any, values: list[Any]) -> Any:
    return tree_map(lambda one: values[one.number] if isinstance(one, Place) else one, template)


def _without_dead(steps: list[Step], needed: set[int]) -> list[Step]:
    """The steps that are needed, that write to a tensor, or that draw noise."""
    kept = []
    for step in reversed(steps):
        acts = step.function._schema.is_mutable or torch.Tag.nondeterministic_seeded in step.function.tags
        if acts or needed.intersection(step.results):
            kept.append(step)
            needed.update(step.needed())
    return kept[::-1]


def _is_new(schema: Any) -> bool:
    """Whether an operation returns one tensor, with memory of its own."""
    return not schema.is_mutable and len(schema.returns) == 1 and schema.returns[0].alias_info is None


def _used_once(steps: list[Step], results: set[int]) -> set[int]:
    """Places that one argument of one step needs, and nothing else."""
    needed = Counter(number for step in steps for number in step.needed())
    return {number for number, times in needed.items() if times == 1} - results
