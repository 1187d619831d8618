"""One call of a function, followed through its syntax tree."""

from __future__ import annotations

import ast
import builtins
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vd.operations import TABLE
from pyro_vd.reading.values import POSITIONS, Local, Super, Value, joined

if TYPE_CHECKING:
    from pyro_vd.reading.net import Reading

MOST = 20_000  # statements that are read from one method on
DEEPEST = 12  # calls of helpers within helpers that are followed
_METADATA = {"shape", "dtype", "device", "ndim", "size", "dim", "numel", "stride", "layout", "requires_grad", "is_cuda"}


class TooLong(Exception):
    """The code has more statements than are read."""


class Frame:
    """One call of a function: its variables, and what it returns."""

    def __init__(self, reading: Reading, function: Any, receiver: Any, variables: dict[str, Value] | None = None):
        self.reading, self.function, self.receiver = reading, function, receiver
        self.variables: dict[str, Value] = {} if variables is None else variables
        self.returned: list[Value] = []

    def bind(self, arguments: ast.arguments, args: list[Value], kwargs: dict[str, Value]) -> None:
        places = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
        self.variables.update({name: Value() for name in places})
        self.variables.update({one.arg: Value() for one in arguments.kwonlyargs})
        self.variables.update(zip(places, args, strict=False))
        rest = {name: value for name, value in kwargs.items() if name not in self.variables}
        self.variables.update({name: value for name, value in kwargs.items() if name in self.variables})
        if arguments.vararg:
            self.variables[arguments.vararg.arg] = Value(objects=(tuple(args[len(places) :]),))
        if arguments.kwarg:
            self.variables[arguments.kwarg.arg] = joined(rest.values())

    def result_of(self, body: Any) -> Value:
        if isinstance(body, ast.expr):
            return self.value(body)
        self.execute(body)
        return joined(self.returned, with_objects=True)

    def call_local(self, node: Any, args: list[Value], kwargs: dict[str, Value]) -> Value:
        if len(self.reading._calls) > DEEPEST or node in self.reading._calls:
            return joined([*args, *kwargs.values()])
        inner = Frame(self.reading, self.function, self.receiver, dict(self.variables))
        inner.bind(node.args, args, kwargs)
        self.reading._calls.append(node)
        try:
            return inner.result_of(node.body)
        finally:
            self.reading._calls.pop()

    # Statements

    def execute(self, statements: list[ast.stmt]) -> None:
        self.reading.steps += len(statements)
        if self.reading.steps > MOST:
            raise TooLong
        for statement in statements:
            getattr(self, f"_{type(statement).__name__}", self._other)(statement)

    def _branches(self, *branches: list[ast.stmt]) -> None:
        """Any of the branches may be the one that runs."""
        before, after = self.variables, []
        for branch in branches:
            self.variables = dict(before)
            self.execute(branch)
            after.append(self.variables)
        names = dict.fromkeys(name for one in after for name in one)
        self.variables = {name: joined([one[name] for one in after if name in one], True) for name in names}

    def _If(self, node: ast.If) -> None:
        self.value(node.test)
        self._branches(node.body, node.orelse)

    def _For(self, node: Any) -> None:
        for _ in range(2):  # the next round may use what one round computes
            self.assign(node.target, self.element(self.value(node.iter)))
            self._branches(node.body, [])
        self.execute(node.orelse)

    def _While(self, node: ast.While) -> None:
        for _ in range(2):
            self.value(node.test)
            self._branches(node.body, [])

    def _With(self, node: ast.With) -> None:
        for item in node.items:
            value = self.value(item.context_expr)
            if item.optional_vars is not None:
                self.assign(item.optional_vars, value)
        self.execute(node.body)

    def _Try(self, node: ast.Try) -> None:
        self._branches(node.body + node.orelse, *(handler.body for handler in node.handlers))
        self.execute(node.finalbody)

    def _Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.returned.append(self.value(node.value))

    def _Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.assign(target, value)

    def _AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.value(node.value))

    def _AugAssign(self, node: ast.AugAssign) -> None:
        self.assign(node.target, self._combined(node.op, self.value(node.target), self.value(node.value)))

    def _FunctionDef(self, node: ast.FunctionDef) -> None:
        self.variables[node.name] = Value(objects=(Local(node, self),))

    def _Lambda(self, node: ast.Lambda) -> Value:
        return Value(objects=(Local(node, self),))

    def assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.variables[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = self.reading.parts_of(value)
            fits = len(parts) == len(target.elts) and not any(isinstance(one, ast.Starred) for one in target.elts)
            for one, part in zip(target.elts, parts if fits else [self.element(value)] * len(target.elts), strict=True):
                self.assign(one, part)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, value)
        elif isinstance(target, ast.Attribute):
            for owner in self.value(target.value).objects:
                if isinstance(owner, nn.Module) and target.attr not in owner._parameters:
                    old = self.reading.kept.get((owner, target.attr), Value())
                    self.reading.kept[owner, target.attr] = joined([old, value], with_objects=True)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            old = self.variables.get(target.value.id, Value())
            self.variables[target.value.id] = joined([old, value], with_objects=True)

    # Expressions

    def value(self, node: ast.expr) -> Value:
        return getattr(self, f"_{type(node).__name__}", self._other)(node)

    def element(self, value: Value) -> Value:
        parts = self.reading.parts_of(value)
        return joined([*parts, replace(value, objects=())], with_objects=True)

    def _other(self, node: ast.AST) -> Value:
        """A node with no meaning of its own here: made of all that is in it."""
        if isinstance(node, ast.stmt):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.expr, ast.stmt)):
                    self._statement_or_value(child)
            return Value()
        return joined([self.value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)])

    def _statement_or_value(self, node: Any) -> None:
        if isinstance(node, ast.stmt):
            self.execute([node])
        else:
            self.value(node)

    def _Name(self, node: ast.Name) -> Value:
        if node.id in self.variables:
            value = self.variables[node.id]
            is_position = bool(POSITIONS.search(node.id)) and not value.parameters
            return replace(value, is_data=False, is_position=True) if is_position else value
        function = self.function
        free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        if node.id in free:
            try:
                return self.reading.of(free[node.id].cell_contents)
            except ValueError:  # not yet filled
                return Value()
        return self.reading.of(function.__globals__.get(node.id, getattr(builtins, node.id, None)))

    def _Attribute(self, node: ast.Attribute) -> Value:
        owner = self.value(node.value)
        if owner.objects:
            found = [self.reading.attribute(one, node.attr) for one in owner.objects]
            return joined(found, with_objects=True)
        return Value() if node.attr in _METADATA else owner

    def _Subscript(self, node: ast.Subscript) -> Value:
        value = self.value(node.value)
        index = node.slice
        parts = self.reading.parts_of(value)
        if isinstance(index, ast.Constant) and isinstance(index.value, int) and -len(parts) <= index.value < len(parts):
            return parts[index.value] if value.objects else replace(value, exactly=())
        if isinstance(index, ast.Slice):
            return replace(value, exactly=())
        places = index.elts if isinstance(index, ast.Tuple) else [index]
        indices = [self.value(place) for place in places if not isinstance(place, ast.Slice)]
        self.reading.meet("indexing", [replace(value, objects=()), *indices])
        return self.element(value)

    def _Constant(self, node: ast.Constant) -> Value:
        return Value(exactly=(node.value,))

    def _UnaryOp(self, node: ast.UnaryOp) -> Value:
        value = self.value(node.operand)
        is_number = isinstance(node.op, ast.USub) and value.exactly and isinstance(value.exactly[0], int)
        return replace(value, objects=(), exactly=(-value.exactly[0],) if is_number else ())

    def _BinOp(self, node: ast.BinOp) -> Value:
        return self._combined(node.op, self.value(node.left), self.value(node.right))

    def _combined(self, operator: ast.operator, left: Value, right: Value) -> Value:
        if isinstance(operator, ast.MatMult):
            return self.reading.operation(torch.matmul, [left, right], {})
        if isinstance(operator, (ast.Mult, ast.Div)):
            self.reading.product(left, right)
        return joined([left, right])

    def _IfExp(self, node: ast.IfExp) -> Value:
        self.value(node.test)
        return joined([self.value(node.body), self.value(node.orelse)], with_objects=True)

    def _BoolOp(self, node: ast.BoolOp) -> Value:
        return joined([self.value(one) for one in node.values], with_objects=True)

    def _NamedExpr(self, node: ast.NamedExpr) -> Value:
        value = self.value(node.value)
        self.assign(node.target, value)
        return value

    def _sequence(self, node: Any) -> Value:
        parts = [self.value(one) for one in node.elts]
        return replace(joined(parts), objects=(tuple(parts),))

    _Tuple = _List = _sequence

    def _comprehension(self, node: Any) -> Value:
        before = self.variables
        self.variables = dict(before)
        for generator in node.generators:
            self.assign(generator.target, self.element(self.value(generator.iter)))
        value = self.value(node.value if isinstance(node, ast.DictComp) else node.elt)
        self.variables = before
        return replace(value, objects=((value,),))

    _ListComp = _GeneratorExp = _SetComp = _DictComp = _comprehension

    def _Call(self, node: ast.Call) -> Value:
        args = [self.value(one.value if isinstance(one, ast.Starred) else one) for one in node.args]
        kwargs = {one.arg or f"**{i}": self.value(one.value) for i, one in enumerate(node.keywords)}
        function = node.func
        if isinstance(function, ast.Name) and function.id not in self.variables:
            if function.id == "super" and self.receiver is not None:
                classes = self._Name(ast.Name("__class__")).objects
                return Value(objects=tuple(Super(one, self.receiver) for one in classes))
            if function.id == "getattr" and args:
                return self._attribute_by_name(args[0], node.args[1] if len(node.args) > 1 else None)
            if function.id in ("enumerate", "zip", "reversed", "list", "tuple", "iter", "next", "sorted"):
                return joined([self.element(one) for one in args], with_objects=True)
        if isinstance(function, ast.Attribute):
            owner = self.value(function.value)
            if not owner.objects:
                return self._method(owner, function.attr, args, kwargs)
        called = self.value(function)
        if not called.objects:
            self.reading.meet(ast.unparse(function)[:60], [called, *args, *kwargs.values()])
            return joined([called, *args, *kwargs.values()])
        return joined([self.reading.call(one, args, kwargs) for one in called.objects], with_objects=True)

    def _method(self, owner: Value, name: str, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """A method of a tensor."""
        if name in _METADATA:
            return Value()
        method = getattr(Tensor, name, None)
        if method in TABLE:
            return self.reading.operation(method, [owner, *args], kwargs)
        self.reading.meet(name, [owner, *args, *kwargs.values()])
        return joined([owner, *args, *kwargs.values()])

    def _attribute_by_name(self, owner: Value, name: ast.expr | None) -> Value:
        """``getattr``; of a name that is not written out, every parameter and child."""
        if isinstance(name, ast.Constant):
            return joined([self.reading.attribute(one, str(name.value)) for one in owner.objects], with_objects=True)
        modules = [one for one in owner.objects if isinstance(one, nn.Module)]
        things = [thing for one in modules for thing in (*one._parameters.values(), *one._modules.values())]
        return joined([self.reading.of(thing) for thing in things], with_objects=True)
