"""Recording a program of tensors as one functional graph, below every handler and module it runs through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyro_vd._torch import tree_map
from pyro_vd.compiled.rewriting import DECOMPOSITIONS, realize_scalars
from pyro_vd.weights import RandomWeight
from pyro_vd.weights.views import METADATA

_ROUNDS = 3
Standing = Callable[[Sequence[Tensor]], TorchFunctionMode]
Program = Callable[[list[Tensor], list[Tensor], Standing], list[Tensor]]


class _Standing(TorchFunctionMode):
    """Puts one tensor in the place of another wherever a torch function meets it.

    So a parameter or buffer is an input of the recorded graph, wherever the program has it from. Tensors from outside
    that stand for nothing are noted in ``unknown``.
    """

    def __init__(self, real: Sequence[Tensor], recorded: Sequence[Tensor], unknown: list[Tensor]):
        super().__init__()
        self._standing = dict(zip(real, recorded, strict=True))
        self._unknown = unknown

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METADATA:
            return func(*args, **kwargs or {})
        args, kwargs = tree_map(self._in_place_of, args), tree_map(self._in_place_of, kwargs or {})
        if RandomWeight in types and torch._C._is_torch_function_enabled():
            with self:  # a random weight calls torch functions in its turn
                return RandomWeight.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs)

    def _in_place_of(self, argument: Any) -> Any:
        if type(argument) not in (Tensor, torch.nn.Parameter) or argument.is_meta:
            return argument  # of a type with rules of its own; or what a fake tensor is made of
        if isinstance(argument, FakeTensor) or is_functorch_wrapped_tensor(argument):
            return argument
        if argument not in self._standing:
            if all(argument is not other for other in self._unknown):
                self._unknown.append(argument)
            return argument
        return self._standing[argument]


def record(
    program: Program, tensors: Sequence[Tensor], arguments: Sequence[Tensor]
) -> tuple[GraphModule, list[Tensor]]:
    """Record ``program`` as a graph of ATen operations whose inputs are all tensors it reads.

    The program is run on fake tensors: no arithmetic is done, and no value of a tensor can be asked for.

    Args:
        program: called with the recorded ``tensors``, the recorded ``arguments``, and a function: given tensors to
            stand for ``tensors``, one for each, it returns a context in which every operation on one of
            ``tensors`` meets its stand-in. Returns the outputs. It may write to the recorded tensors.
        tensors: what the program is known to read.
        arguments: what is different in every call.

    Returns:
        The graph, functional but for writes to inputs at its end, and all tensors it reads: ``tensors`` and those that
        were found on the way. Its inputs are these, then the arguments.
    """
    tensors = list(tensors)
    graph, unknown = _recorded_once(program, tensors, arguments)
    for _ in range(_ROUNDS):
        if not unknown:
            break
        tensors += unknown
        graph, unknown = _recorded_once(program, tensors, arguments)
    if unknown:
        shapes = [tuple(tensor.shape) for tensor in unknown]
        raise ValueError(f"a tensor with values of its own is made anew in every run, of shape {shapes}")
    for node in reversed(graph.graph.nodes):
        if "record_function" in str(node.target):  # marks for the profiler, which compilers do not know
            graph.graph.erase_node(node)
    graph.recompile()
    number = len(tensors)
    with torch.no_grad():
        flat = [tensor.detach() for tensor in (*tensors, *arguments)]
        in_place = functionalize(lambda *flat: graph(list(flat[:number]), list(flat[number:])))
        functional = make_fx(in_place, DECOMPOSITIONS, tracing_mode="fake")(*flat)
    functional.graph.eliminate_dead_code()
    return GraphModule(functional, realize_scalars(fx_graph_cse(functional.graph))), tensors


def _recorded_once(
    program: Program, tensors: list[Tensor], arguments: Sequence[Tensor]
) -> tuple[GraphModule, list[Tensor]]:
    """The graph with what is written in place, and the tensors that it meets besides ``tensors``."""
    unknown: list[Tensor] = []

    def run(recorded: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        return program(recorded, inputs, lambda stand_ins: _Standing(tensors, stand_ins, unknown))

    # Without oneDNN, whose recurrent layers are one operation that no compiler takes apart.
    with torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None):  # type: ignore
        return make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(tensors, list(arguments)), unknown
