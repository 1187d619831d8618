"""What a net does with its parameters, read in the source of its modules. Nothing of the net is run.

A parameter is a weight where it, or something made of parameters alone (a view, a standardised or masked weight, a sum
of two), is multiplied by data in an operation of the table: ``F.linear(x, self.weight / self.weight.norm())``, ``x @
self.weight[i]``. A parameter that is added to data (positions), joined to it (class tokens) or scales it is not.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterable
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vd.operations import TABLE
from pyro_vd.reading.frame import DEEPEST, Frame, TooLong
from pyro_vd.reading.met import factors, name_of, puts_beside
from pyro_vd.reading.padding import PaddingRows
from pyro_vd.reading.source import own_functions, tree_of
from pyro_vd.reading.values import POSITIONS, Bound, Local, Super, Value, is_of_torch, joined, kind_of

_ELEMENTS = {"values", "items", "children", "named_children"}


class Reading:
    """What is found in the source of a net's modules.

    Args:
        net: the net.

    Attributes:
        used: name of a parameter -> name of the operation that multiplies data by it.
        lookups: embedding layers -> for each call of one, whether it looks up positions.
        met: name of a parameter -> name of a function that is not in the table and is given data beside it.
        unread: modules whose code has no source (written in C, or by ``exec``), or more than is read.
        unseen: names of parameters that no code read uses (a hook, a lambda), or that are given to code without source.
    """

    def __init__(self, net: nn.Module):
        self.names: dict[nn.Parameter, str] = {parameter: name for name, parameter in net.named_parameters()}
        self.used: dict[str, str] = {}
        self.met: dict[str, str] = {}
        self.lookups: dict[nn.Module, list[bool]] = {}
        self.unread: dict[nn.Module, None] = {}
        self.kept: dict[tuple[nn.Module, str], Value] = {}  # attributes that the code of the net sets
        self.padding = PaddingRows()
        self._factors: list[tuple[frozenset[str], frozenset[str]]] = []
        self._known: dict[Any, Value] = {}
        self.unseen = set(self.names.values())
        self._given_away: set[str] = set()
        self.steps = 0  # statements read from one method on
        self._calls: list[Any] = []
        for module in net.modules():
            if not is_of_torch(kind_of(module)):
                self._read(module)
        self.unseen |= self._given_away
        self._leave_out_gains({name: parameter.numel() for parameter, name in self.names.items()})

    def _read(self, module: nn.Module) -> None:
        for function in own_functions(module):
            tree = tree_of(function)
            if tree is None:
                self.unread.setdefault(module)
                continue
            given = (*tree.args.posonlyargs, *tree.args.args)[1:] + tuple(tree.args.kwonlyargs)  # after self
            self.steps = 0
            try:
                self.run(function, module, [], {argument.arg: _input(argument.arg) for argument in given})
            except TooLong:
                self.unread.setdefault(module)

    def _leave_out_gains(self, elements: dict[str, int]) -> None:
        """Of two parameters that are multiplied elementwise to make a weight, the smaller one is a gain."""
        for first, second in self._factors:
            sizes = [max(elements[name] for name in names) for names in (first, second)]
            if sizes[0] != sizes[1]:
                for name in (first - second) if sizes[0] < sizes[1] else (second - first):
                    self.used.pop(name, None)

    def of(self, thing: Any) -> Value:
        """An object that exists before the net runs."""
        if isinstance(thing, Value):
            return thing
        if isinstance(thing, Tensor):
            name = frozenset({self.names[thing]}) if thing in self.names else frozenset()  # type: ignore[index]
            self.unseen -= name
            return Value(name, exactly=(thing,))
        if thing is None or isinstance(thing, (int, float, str, bytes, torch.dtype, torch.device)):
            return Value(exactly=(thing,))
        return Value(objects=(thing,))

    def run(self, function: Any, receiver: Any, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """What a call of a Python function returns."""
        function = inspect.unwrap(function)
        tree = tree_of(function)
        given = joined([*args, *kwargs.values()])
        key = (
            function, receiver if isinstance(receiver, nn.Module) else None,
            tuple((name, value.parameters, value.is_data, value.is_position, value.exactly)
                  for name, value in [*enumerate(args), *sorted(kwargs.items())]),
        )  # fmt: skip
        is_plain = not any(value.objects for value in (*args, *kwargs.values()))
        if is_plain and key in self._known:
            return self._known[key]
        if tree is None or key in self._calls or len(self._calls) > DEEPEST:
            self._given_away |= given.parameters if tree is None else set()
            return given
        self._calls.append(key)
        try:
            frame = Frame(self, function, receiver)
            frame.bind(tree.args, ([] if receiver is None else [Value(objects=(receiver,))]) + args, kwargs)
            result = frame.result_of(tree.body)
        finally:
            self._calls.pop()
        if is_plain:
            self._known[key] = result
        return result

    def operation(self, function: Any, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """What an operation of the table returns; notes the weights among its arguments."""
        entry = TABLE[function]
        everything = [*args, *kwargs.values()]
        if entry in (TABLE[torch.mul], TABLE[torch.add]):
            if entry is TABLE[torch.mul]:
                self.product(*everything[:2])
            return joined(everything)
        places = list(entry.signature.parameters) if entry.signature is not None else []
        named = [(places[min(i, len(places) - 1)] if places else "", value) for i, value in enumerate(args)]
        named += list(kwargs.items())
        # A term that is added is not a factor.
        factors = [name for name in entry.weights if "bias" not in name and (name != "input" or len(entry.weights) < 3)]
        for name, value in named:
            others = [other for _, other in named if other is not value]
            for part in self.parts_of(value):
                rest = others + [other for other in self.parts_of(value) if other is not part]
                if (places and name not in factors) or not part.is_weight:
                    continue
                if (is_lookup := function is torch.nn.functional.embedding) and args and args[0].is_position:
                    continue
                if is_lookup or name == "weight" or any(other.is_data for other in rest):
                    for parameter in part.parameters:
                        self.used.setdefault(parameter, getattr(function, "__name__", str(function)).strip("_"))
                    self.padding.note(function, part, named)
        result = joined(everything)
        has_factor = any(name in factors and value.is_weight for name, value in named)
        return replace(result, is_data=True) if result.is_data or (has_factor and "weight" in factors) else result

    def meet(self, function: Any, values: Iterable[Value]) -> None:
        """Note the parameters that a function which is not in the table is given beside data."""
        parts = [part for value in values for part in self.parts_of(value)]
        name = function if isinstance(function, str) else name_of(function)
        if name.startswith("fft_") or (any(part.is_data for part in parts) and not puts_beside(name)):
            for part in parts:
                for parameter in part.parameters if part.is_weight else ():
                    self.met.setdefault(parameter, name)

    def product(self, *factors: Value) -> None:
        """Note an elementwise product of two values."""
        if len(factors) == 2 and all(one.is_weight for one in factors):
            if not factors[0].parameters & factors[1].parameters:
                self._factors.append((factors[0].parameters, factors[1].parameters))

    def parts_of(self, value: Value) -> list[Value]:
        """The elements of a container; of anything else, the value itself."""
        parts: list[Value] = []
        for one in value.objects:
            if isinstance(one, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
                parts += [self.of(child) for child in one._modules.values()]
            elif isinstance(one, (nn.ParameterList, nn.ParameterDict)):
                parts += [self.of(own) for own in one._parameters.values()]
            elif isinstance(one, (list, tuple, dict)) and type(one) in (list, tuple, dict) and len(one) <= 1000:
                parts += [self.of(own) for own in (one.values() if isinstance(one, dict) else one)]
        return parts or [value]

    def attribute(self, owner: Any, name: str) -> Value:
        """An attribute of an object that exists before the net runs; properties are followed."""
        if isinstance(owner, Super):
            following = type(owner.receiver).__mro__
            following = following[following.index(owner.after) + 1 :] if owner.after in following else ()
            return self._of_class(following, owner.receiver, name)
        if isinstance(owner, ModuleType):
            return self.of(vars(owner).get(name))
        if name in _ELEMENTS and self.parts_of(value := self.of(owner)) != [value]:
            return Value(objects=(tuple(self.parts_of(value)),))
        if isinstance(owner, type):
            return self.of(inspect.getattr_static(owner, name, None))
        own = vars(owner) if hasattr(owner, "__dict__") else {}
        if not isinstance(owner, nn.Module):
            return self.of(own[name]) if name in own else self._of_class(type(owner).__mro__, owner, name)
        found = [self.kept[owner, name]] if (owner, name) in self.kept else []
        parametrized = owner._modules.get("parametrizations")
        if isinstance(parametrized, nn.ModuleDict) and name in parametrized:
            originals = parametrized[name]._parameters  # type: ignore[union-attr]
            for original in originals.values():
                self.of(original)
            return self.of(originals.get("original", originals.get("original1")))
        self.of(owner._parameters.get(f"{name}_g"))
        for table in (owner._parameters, owner._modules, owner._buffers, own):
            for key in (name, f"{name}_orig", f"{name}_v"):  # of masks, and of norms of the old style
                if key in table and (key == name or table is owner._parameters):
                    value = self.of(table[key])
                    is_position = table is owner._buffers and bool(POSITIONS.search(name))
                    return joined([*found, replace(value, is_position=is_position)], with_objects=True)
        return joined([*found, self._of_class(type(owner).__mro__, owner, name)], with_objects=True)

    def _of_class(self, classes: Iterable[type], owner: Any, name: str) -> Value:
        value = next((vars(one)[name] for one in classes if name in vars(one)), None)
        if isinstance(value, (property, functools.cached_property)):
            getter = value.fget if isinstance(value, property) else value.func
            return self.run(getter, owner, [], {})
        if isinstance(value, staticmethod):
            return self.of(value.__func__)
        if isinstance(value, classmethod):
            return Value(objects=(Bound(value.__func__, type(owner)),))
        return Value(objects=(Bound(value, owner),)) if isinstance(value, FunctionType) else self.of(value)

    def call(self, function: Any, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """What a call of an object returns."""
        given = joined([*args, *kwargs.values()])
        if isinstance(function, Local):
            return function.frame.call_local(function.node, args, kwargs)
        if isinstance(function, MethodType):
            function = Bound(function.__func__, function.__self__)
        if isinstance(function, functools.partial):
            return self.call(function.func, [*map(self.of, function.args), *args], kwargs)
        if isinstance(function, nn.Module):
            return self._module_called(function, args, kwargs, given)
        if isinstance(function, Bound):
            if isinstance(function.receiver, nn.Module) and is_of_torch(kind_of(function.receiver)):
                return self._module_called(function.receiver, args, kwargs, given)
            if isinstance(function.receiver, nn.Module) and not is_of_torch(function.function):
                return self.run(function.function, function.receiver, args, kwargs)
            in_base = is_of_torch(function.function) and function.function.__qualname__.startswith("Module.")
            return given if in_base else self._helper_called(function.function, function.receiver, args, kwargs)
        if isinstance(function, tuple):
            return Value(objects=(function,))
        if isinstance(function, (FunctionType, BuiltinFunctionType, MethodDescriptorType)):
            if function in TABLE:
                return self.operation(function, args, kwargs)
            if function is torch.arange:
                return Value(is_position=True)
            if not is_of_torch(function):
                return self._helper_called(function, None, args, kwargs)
        elif isinstance(function, (classmethod, types.ClassMethodDescriptorType)):  # of Function; from torch 2.14 in C
            self._given_away |= given.parameters
        elif isinstance(
            own := inspect.getattr_static(type(function), "__call__", None), FunctionType
        ) and not is_of_torch(own):
            if not isinstance(function, type):  # an object that can be called
                return self._helper_called(own, function, args, kwargs)
        self.meet(function, factors(function, args, kwargs))
        return given

    def _helper_called(self, function: Any, receiver: Any, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """A function that is not a method of a module: it can only use its arguments."""
        given = [*args, *kwargs.values()]
        things = [receiver, *(one for value in given for one in value.objects)]
        has_parameters = any(value.parameters for value in given) or any(isinstance(one, nn.Module) for one in things)
        is_of_python = function.__module__ in sys.stdlib_module_names if function.__module__ else True
        if is_of_python or not has_parameters:
            self.meet(function, given)
            return joined(given)
        return self.run(function, receiver, args, kwargs)

    def _module_called(self, module: nn.Module, args: list[Value], kwargs: dict[str, Value], given: Value) -> Value:
        if is_of_torch(kind_of(module)):
            self.padding.note_layer(module, self.names)
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                self.lookups.setdefault(module, []).append(given.is_position)
            if any(True for _ in module.parameters()):
                return Value(is_data=True)
            self.meet(kind_of(module), [*args, *kwargs.values()])
            return given
        if given.parameters or given.is_position or not given.is_data:
            forward = self.attribute(module, "forward").objects
            return joined([self.call(one, args, kwargs) for one in forward]) if forward else Value(is_data=True)
        return Value(is_data=True)


def _input(name: str) -> Value:
    return Value(is_position=True) if POSITIONS.search(name) else Value(is_data=True)
