"""Recording a function of tensors as one functional graph, below every handler and module that it runs through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vd._torch import full_name, in_backward_pass, is_checkpointing, tree_map
from pyro_vd.compiled._compiler import graph_of, is_random, is_recorded, overrides_are_on
from pyro_vd.compiled.reasons import Unrecordable
from pyro_vd.compiled.rewriting import DECOMPOSITIONS, free_of_strides, merge_equal, realize_scalars
from pyro_vd.weights import RandomWeight
from pyro_vd.weights.views import METADATA

_ROUNDS = 3
# Given tensors to stand for the known ones, one for each: a context in which every operation meets the former.
Substitute = Callable[[Sequence[Tensor]], TorchFunctionMode]
# A function of tensors and arguments, run once while it is recorded. It may write to its tensors.
Recordable = Callable[[list[Tensor], list[Tensor], Substitute], list[Tensor]]

# Operations with a number that scales one of their terms. Optimizers give them the learning rate: here, a tensor.
_SCALED = {
    function: name
    for name, functions in {
        "alpha": (Tensor.add_, Tensor.add, torch.add, Tensor.sub_, Tensor.sub, torch.sub),
        "value": (Tensor.addcdiv_, Tensor.addcdiv, torch.addcdiv, Tensor.addcmul_, Tensor.addcmul, torch.addcmul),
    }.items()
    for function in functions
}


class _ReplaceTensors(TorchFunctionMode):
    """Replaces real tensors by graph inputs.

    So a parameter or buffer is an input of the recorded graph, wherever the function has it from. Other real tensors
    are noted in ``unknown``.
    """

    def __init__(self, real: Sequence[Tensor], recorded: Sequence[Tensor], unknown: list[Tensor]):
        super().__init__()
        self._input_for = dict(zip(real, recorded, strict=True))
        self._unknown = unknown

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METADATA:
            return func(*args, **kwargs or {})
        args, kwargs = tree_map(self._replaced, args), tree_map(self._replaced, kwargs or {})
        if RandomWeight in types and overrides_are_on():
            with self:  # a random weight calls torch functions in its turn
                return RandomWeight.__torch_function__(func, types, args, kwargs)
        if isinstance(scale := kwargs.get(_SCALED.get(func)), Tensor):
            args, kwargs = _scaled(func, args, kwargs, scale)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and any(type(size) is not int for size in result.shape):
            raise Unrecordable(
                f"{full_name(func)} has a result whose shape depends on the values of a tensor, as x[mask] has; write "
                "torch.where(mask, ..., ...)"
            )
        return result

    def _replaced(self, argument: Any) -> Any:
        if type(argument) not in (Tensor, torch.nn.Parameter) or argument.is_meta:
            return argument  # of a type with rules of its own; or what a fake tensor is made of
        if is_recorded(argument):
            return argument
        if argument not in self._input_for:
            if all(argument is not other for other in self._unknown):
                self._unknown.append(argument)
            return argument
        return self._input_for[argument]


class _NoNoiseAgain(TorchDispatchMode):
    """Raises where activation checkpointing repeats a draw in the backward pass: a graph would draw it anew.

    Checkpointing sets the random numbers back before it repeats a layer, which is no operation of a graph.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_random(func) and in_backward_pass() and is_checkpointing():
            raise Unrecordable(
                "torch.utils.checkpoint repeats a layer with noise of its own (a random weight, dropout) in the "
                "backward pass, where a program would draw other noise; call that layer without checkpoint in "
                "compiled steps, whose compiler chooses by itself what is computed again"
            )
        return func(*args, **kwargs or {})


def _scaled(func: Any, args: tuple, kwargs: dict, scale: Tensor) -> tuple[tuple, dict]:
    """The arguments with one term multiplied by ``scale``, where ``func`` would read its value as a number."""
    first, term, *rest = args
    kwargs = {name: value for name, value in kwargs.items() if name != _SCALED[func]}
    return (first, term * scale, *rest), kwargs


def record(
    function: Recordable, tensors: Sequence[Tensor], arguments: Sequence[Tensor]
) -> tuple[GraphModule, list[Tensor]]:
    """Record ``function`` as a graph of ATen operations whose inputs are all tensors it reads.

    The function is run on fake tensors: no arithmetic is done, and no value of a tensor can be asked for.

    Args:
        function: called with the recorded ``tensors``, the recorded ``arguments``, and a :data:`Substitute` for
            ``tensors``. Returns the outputs. It may write to the recorded tensors.
        tensors: what the function is known to read.
        arguments: what is different in every call.

    Returns:
        The graph, functional but for writes to inputs at its end, and all tensors it reads: ``tensors`` and those that
        were found on the way. Its inputs are these, then the arguments.

    Raises:
        ValueError: the function makes a new constant tensor in every run.
    """
    tensors = list(tensors)
    graph, unknown = _recorded_once(function, tensors, arguments)
    for _ in range(_ROUNDS):
        if not unknown:
            break
        tensors += unknown
        graph, unknown = _recorded_once(function, tensors, arguments)
    if unknown:
        shapes = [tuple(tensor.shape) for tensor in unknown]
        raise ValueError(f"the model creates a new constant tensor in every run, of shape {shapes}")
    for node in reversed(graph.graph.nodes):
        if "record_function" in str(node.target):  # marks for the profiler, which compilers do not know
            graph.graph.erase_node(node)
    graph.recompile()
    number = len(tensors)
    with torch.no_grad():
        flat = [tensor.detach() for tensor in (*tensors, *arguments)]
        in_place = functionalize(lambda *flat: graph(list(flat[:number]), list(flat[number:])))
        functional = graph_of(in_place, *flat, decompositions=DECOMPOSITIONS)
    functional.graph.eliminate_dead_code()
    return GraphModule(functional, realize_scalars(merge_equal(free_of_strides(functional.graph)))), tensors


def _recorded_once(
    function: Recordable, tensors: list[Tensor], arguments: Sequence[Tensor]
) -> tuple[GraphModule, list[Tensor]]:
    """The graph with what is written in place, and the tensors that it meets besides ``tensors``."""
    unknown: list[Tensor] = []

    def run(recorded: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        with _NoNoiseAgain():
            return function(recorded, inputs, lambda stand_ins: _ReplaceTensors(tensors, stand_ins, unknown))

    # Without oneDNN, whose recurrent layers are one operation that no compiler takes apart.
    with torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None):  # type: ignore
        return graph_of(run, tensors, list(arguments)), unknown
