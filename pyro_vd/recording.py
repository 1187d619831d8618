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
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pyro_vd.views import METADATA
from pyro_vd.weights import RandomWeight

aten = torch.ops.aten
_ROUNDS = 3
# Terms of the series of atanh(t) to t = 1 / 3, for full precision; in half precision exp(80) is infinite.
_DECOMPOSED = {torch.float32: 7, torch.float64: 15}
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
        functional = make_fx(in_place, _DECOMPOSITIONS, tracing_mode="fake")(*flat)
    functional.graph.eliminate_dead_code()
    return GraphModule(functional, _realize_scalars(fx_graph_cse(functional.graph))), tensors


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``max(x, 0) + log1p(exp(-|x|))``, with the exponential of :func:`_sigmoid`, its gradient, and no logarithm.

    ``log1p(s) = 2 * atanh(t)`` with ``t = s / (2 + s) <= 1 / 3`` is a short series, which stays within a loop; a
    logarithm is a call of a function from within it, which is slower.
    """
    if x.dtype not in _DECOMPOSED or beta != 1:
        return NotImplemented
    r, w = _exponential(x)
    t = r.clamp(max=1.0) / (r.clamp(min=1.0) + w)
    *rest, series = (2.0 / (2 * k + 1) for k in range(_DECOMPOSED[x.dtype]))
    for coefficient in reversed(rest):
        series = series * (t * t) + coefficient
    return torch.where(x > threshold, x, x.clamp(min=0.0) + t * series)


def _sigmoid(x: Tensor) -> Tensor:
    if x.dtype not in _DECOMPOSED:
        return NotImplemented
    r, w = _exponential(x)
    return r * w.reciprocal()


def _exponential(x: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(x)``, and one more, neither of them infinite."""
    r = x.clamp(max=80.0).exp()
    return r, r + 1.0


_DECOMPOSITIONS: dict[Any, Callable] = {aten.softplus.default: _softplus, aten.sigmoid.default: _sigmoid}


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


def _realize_scalars(graph: Graph) -> Graph:
    """Take the arithmetic of 0-dim inputs (a learning rate, bias corrections) out of the loops over tensors.

    A compiler would repeat it for every element. Stacked, it is computed once; and a tensor divided by one of its
    results is multiplied by the reciprocal.
    """
    scalars: dict[Node, None] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        derived = node.op == "call_function" and inputs and all(n in scalars for n in inputs) and _is_pure(node)
        if _is_scalar(node) and (node.op == "placeholder" or derived):
            scalars[node] = None
    computed = dict.fromkeys(node for node in scalars if node.op == "call_function")
    rest = [node for node in graph.nodes if node not in scalars and node.op != "placeholder"]
    wanted = dict.fromkeys(
        _use(n, user) for user in rest if _is_pure(user) for n in user.all_input_nodes if n in computed
    )
    if not wanted:
        return graph
    new, known = Graph(), {}
    for node in (*(node for node in graph.nodes if node.op == "placeholder"), *computed):
        known[node] = new.node_copy(node, known.__getitem__)
    realized = {}
    for dtype in {dtype for _, _, dtype in wanted}:
        uses = [use for use in wanted if use[2] == dtype]
        values = [known[n] if not divides else new.call_function(aten.reciprocal.default, (known[n],))
                  for n, divides, _ in uses]  # fmt: skip
        values = [new.call_function(aten.to.dtype, (value, dtype)) for value in values]
        stack = new.call_function(aten.stack.default, ([*values, values[0]],))  # a stack of one would be none
        realized |= {use: new.call_function(aten.select.int, (stack, 0, i)) for i, use in enumerate(uses)}
    for node in rest:
        pure = _is_pure(node)

        def read(input: Node, node: Node = node, pure: bool = pure) -> Node:
            return realized[_use(input, node)] if pure and input in computed else known[input]

        known[node] = new.node_copy(node, read)
        if pure and any(_use(n, node)[1] for n in node.all_input_nodes if n in computed):
            known[node].target = aten.mul.Tensor
    return new


def _use(scalar: Node, node: Node) -> tuple[Node, bool, torch.dtype]:
    """How ``node`` uses a scalar: which one, whether it divides by it, in what precision."""
    divides = node.target is aten.div.Tensor and node.args[1] is scalar and node.args[0] is not scalar
    return scalar, divides, node.meta["val"].dtype


def _is_scalar(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()


def _is_pure(node: Node) -> bool:
    """Whether it is arithmetic on one tensor: no output, no write to a tensor, no random number."""
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None or schema.is_mutable or not isinstance(node.meta.get("val"), Tensor):
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and node.meta["val"].is_floating_point()
