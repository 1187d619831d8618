"""The private corners of PyTorch that random weights use, each in one place; and two numerical helpers.

Tried with torch 2.11.0 to 2.14.1. Sources: https://github.com/pytorch/pytorch, at the path beside each name.
``test_torch_corners.py`` and ``test_backward_corners.py`` in ``tests/core`` have one test for each, which names what
broke. The corners that compiled steps use are in ``compiled/``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType, NoneType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunctionSubclass as DisableTorchFunctionSubclass  # torch/_C/__init__.pyi.in
from torch._C._dynamo.eval_frame import get_eval_frame_callback  # torch/csrc/dynamo/eval_frame.c
from torch._C._functorch import get_unwrapped, maybe_get_bdim  # torch/csrc/functorch/init.cpp
from torch._C._functorch import is_functorch_wrapped_tensor as is_functorch_wrapped_tensor
from torch.autograd import Function, Variable
from torch.nn.utils import parametrize
from torch.overrides import get_testing_overrides, resolve_name
from torch.utils import checkpoint
from torch.utils._pytree import tree_flatten as tree_flatten  # torch/utils/_pytree.py
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_map_only as tree_map_only

grouped_mm = torch._grouped_mm  # what F.grouped_mm calls; aten/src/ATen/native/GroupedMMUtils.h

Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])

_CHECKPOINT = checkpoint.__file__
_AS_IT_IS = nullcontext()
_PLAIN = (Tensor, nn.Parameter)
_BLOCK = 2**15  # elements a thread: what PyTorch gives one at least (at::internal::GRAIN_SIZE, ATen/TensorIterator.h)


def applied(function: type[Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)``, for a function with ``setup_context``, in less time.

    ``apply`` inspects the signature of ``forward`` in every call, which takes longer than an operation on a small
    tensor. Where no transform of ``torch.func`` is active, the inspection does nothing but fill in defaults.
    See ``torch/autograd/function.py``, ``Function.apply``.
    """
    general = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if general or torch._C._len_torch_function_stack():
        # A view, because torch function modes see operations on tensors, but not the inputs of a Function.
        inputs = tuple([one.view_as(one) if isinstance(one, Tensor) else one for one in inputs])
    return function.apply(*inputs) if general else super(Function, function).apply(*inputs)  # type: ignore[misc]


def new_wrapper(cls: type[Tensor], shape: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A tensor of a subclass, with metadata and no storage. See ``torch/csrc/autograd/python_variable.cpp``."""
    return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)  # type: ignore[attr-defined]


def plain(tensor: Tensor) -> Tensor:
    """The tensor under the wrappers of ``torch.func``, which hide the storage; the first of a batch."""
    while is_functorch_wrapped_tensor(tensor):
        axis = maybe_get_bdim(tensor)
        tensor = get_unwrapped(tensor)
        tensor = tensor if axis < 0 else tensor.select(axis, 0)
    return tensor


def share_storage(first: Tensor, second: Tensor) -> bool:
    """Whether two plain tensors look at the same memory. See ``torch/storage.py``, ``UntypedStorage._cdata``."""
    return first.untyped_storage()._cdata == second.untyped_storage()._cdata


def visible(function: Any, **names: Any) -> Any:
    """A copy of a Python function of torch that computes with random weights instead of dispatching to their rules.

    Torch itself is not changed: the copy has global names of its own. It relies on ``function.__code__`` and on the
    name ``has_torch_function`` in ``torch/nn/functional.py``.
    """
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda arguments: False, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def parameters_of(operation: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of an operation, None where they are unknown.

    PyTorch keeps a stand-in with the signature of every function that it dispatches on types
    (``torch/overrides.py``, ``get_testing_overrides``).
    """
    known = get_testing_overrides().get(operation, operation)
    try:
        parameters = dict(inspect.signature(known).parameters)
    except (TypeError, ValueError):
        return None
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return None
    return parameters


def full_name(function: Any) -> str:
    """Name of a function of torch with its module; of any other function, its own."""
    known = resolve_name(function) if function in get_testing_overrides() else None
    return known or getattr(function, "__qualname__", str(function))


def reciprocal_or_zero(x: Tensor) -> Tensor:
    """``1 / x``, but 0 at 0; it takes fewer passes over memory than a mask."""
    return x.sign().div_(at_least_tiny(x.abs()))


def without_autocast(device_type: str) -> AbstractContextManager:
    """Operations in the precision of their tensors. The meta device, which has shapes alone, knows no autocast."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return _AS_IT_IS
    return torch.autocast(device_type, enabled=False)


def at_least_tiny(x: Tensor) -> Tensor:
    """``x``, written over: at least the smallest normal number."""
    return x.clamp_min_(torch.finfo(x.dtype).tiny)


def in_blocks(function: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
    """``function(*inputs)``, elementwise and of several steps, in blocks whose steps stay in the cache of a processor.

    Without blocks every step reads and writes main memory. A block is a multiple of the registers of a processor, so
    that the results are the same to the last digit. There are no blocks where they would be of no use: in what a
    compiler makes one loop of, on another device, for layouts that have no flat view.
    """
    if torch.compiler.is_compiling():
        return function(*inputs)
    first, size = inputs[0], _BLOCK * torch.get_num_threads()
    if first.numel() <= size or first.device.type != "cpu" or torch.is_grad_enabled() or is_recording():
        return function(*inputs)
    if torch._C._are_functorch_transforms_active() or not all([type(one) in _PLAIN for one in inputs]):
        return function(*inputs)
    if not all([one.is_contiguous() and one.shape == first.shape for one in inputs]):
        return function(*inputs)
    outputs: Any = ()
    for start, *parts in zip(range(0, first.numel(), size), *[one.view(-1).split(size) for one in inputs], strict=True):
        results = function(*parts)
        outputs = outputs or tuple([first.new_empty(first.shape, dtype=one.dtype) for one in results])
        for output, result in zip(outputs, results, strict=True):
            output.view(-1)[start : start + size] = result
    return outputs


def in_backward_pass() -> bool:
    """Whether the caller runs inside a backward pass: in a hook, or in a forward pass that checkpointing repeats.

    See ``torch/csrc/autograd/python_autograd.cpp``.
    """
    return torch._C._current_graph_task_id() != -1


def when_backward_pass_ends(function: Callable[[], None]) -> None:
    """Have ``function`` called at the end of the backward pass that is under way; dropped where that fails.

    See ``torch/csrc/autograd/python_engine.cpp``, ``queue_callback``.
    """
    Variable._execution_engine.queue_callback(function)  # type: ignore[attr-defined]


def current_node() -> Any:
    """The node of the graph that the backward pass under way is at, from one of its hooks."""
    return torch._C._current_autograd_node()


def in_checkpointed_region() -> bool:
    """Whether something else than autograd keeps what the backward pass needs: non-reentrant checkpointing, perhaps.

    See ``torch/autograd/graph.py``, ``saved_tensors_hooks``.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # type: ignore[attr-defined]


def is_checkpointing() -> bool:
    """Whether the caller runs under activation checkpointing: in its forward pass, or in a repetition."""
    return next(_frames_of_checkpointing(), None) is not None


def is_repeated_with_other_noise() -> bool:
    """Whether the caller runs in a repetition by checkpointing with ``preserve_rng_state=False``."""
    return any(frame.f_locals.get("preserve_rng_state") is False for frame in _frames_of_checkpointing())


def inputs_of_reentrant_checkpoint() -> tuple | None:
    """The inputs of the reentrant checkpointing under which the caller runs; None without one."""
    for frame in _frames_of_checkpointing():
        if frame.f_code is checkpoint.CheckpointFunction.forward.__code__:
            return frame.f_locals["args"]
    return None


def gradients_are_accumulated() -> bool:
    """Whether the backward pass is one by ``backward()``, for all leaves, which reentrant checkpointing needs.

    See ``torch/utils/checkpoint.py``, ``CheckpointFunction.backward``.
    """
    return torch.autograd._is_checkpoint_valid()


def is_recording() -> bool:
    """Whether operations are being recorded as a graph, on tensors without values."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def has_values() -> bool:
    """Whether tensors have values that can be read: nothing is recorded, compiled, or transformed by ``torch.func``."""
    return not (is_recording() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def parametrizations_are_cached() -> bool:
    """Whether a ``torch.nn.utils.parametrize.cached()`` is open."""
    return parametrize._cache_enabled > 0


def _frames_of_checkpointing() -> Iterator[Any]:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _CHECKPOINT:
            yield frame
        frame = frame.f_back


def leaves_of(args: tuple, kwargs: Mapping[str, Any]) -> list[Any]:
    """The leaves of what a function is called with: at once where they are its arguments themselves."""
    flat = [*args, *kwargs.values()]
    for one in flat:
        if not isinstance(one, (Tensor, int, float, str, NoneType)):
            return tree_leaves(flat)
    return flat


def current_noise(like: Tensor) -> Tensor:
    """The state of the random numbers on the device of a tensor."""
    return torch.cuda.get_rng_state(like.device) if like.is_cuda else torch.get_rng_state()


@contextmanager
def noise_rewound_on_failure() -> Iterator[None]:
    """A context; if an exception ends it, random numbers go on as if nothing had been drawn in it."""
    states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    except BaseException:
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state_all(states[1])
        raise


def is_under_torch_compile(*programs: Any) -> bool:
    """Whether ``torch.compile`` has made one of some functions or modules, or compiles what is called from here."""
    if torch.compiler.is_compiling() or get_eval_frame_callback() not in (None, False):
        return True
    for one in programs:
        made = getattr(one, "_torchdynamo_orig_callable", None) is not None
        if (made and not getattr(one, "_torchdynamo_disable", False)) or "_orig_mod" in getattr(one, "_modules", ()):
            return True
    return False
