"""Every private corner of torch that the compiled step uses. Imported when the first program is compiled, not before.

Tried with torch 2.11.0 to 2.14.1, each corner since the version beside it. Paths are those of
https://github.com/pytorch/pytorch/tree/v2.13.0. ``tests/compiled/test_compiler_corners.py`` has one test for each.
"""

from __future__ import annotations

import copyreg
import linecache
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.graph_module import _loader


def graph_of(function: Callable, *arguments: Any, decompositions: Mapping[Any, Callable] | None = None) -> GraphModule:
    """Run ``function`` on fake tensors and return the graph of ATen operations that it calls.

    Corner: ``make_fx`` with ``_allow_non_fake_inputs``, torch/fx/experimental/proxy_tensor.py, tried since 2.11. It
    records below every torch function mode and Pyro handler, which torch.export and torch.compile do not.
    """
    table = None if decompositions is None else dict(decompositions)
    return make_fx(function, table, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)


def is_recorded(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a recording: it is fake, or wrapped by a transform of torch.func.

    Corners: ``FakeTensor``, torch/_subclasses/fake_tensor.py, and ``is_functorch_wrapped_tensor``,
    torch/csrc/functorch/init.cpp, tried since 2.11. A real tensor that a recording meets is an input of its graph.
    """
    return isinstance(tensor, FakeTensor) or is_functorch_wrapped_tensor(tensor)


def overrides_are_on() -> bool:
    """Whether ``__torch_function__`` is looked at, which it is not within ``DisableTorchFunctionSubclass``.

    Corner: ``_is_torch_function_enabled``, torch/csrc/utils/disable_torch_function.cpp, tried since 2.11.
    """
    return torch._C._is_torch_function_enabled()


def was_written(tensor: Tensor) -> bool:
    """Whether a tensor that was just made has been written to in place.

    Corner: ``Tensor._version``, torch/csrc/autograd/python_variable.cpp, tried since 2.11. A buffer such as those of
    BatchNorm is written back after a step, and only if the model wrote it.
    """
    return tensor._version > 0


def writes(operation: Any) -> bool | None:
    """Whether an ATen operation writes to an argument; None for any other operation.

    Corner: ``OpOverload._schema``, torch/_ops.py, tried since 2.11.
    """
    schema = getattr(operation, "_schema", None)
    return None if schema is None else schema.is_mutable


def is_random(operation: Any) -> bool:
    """Whether an ATen operation draws random numbers: two equal calls of it are two draws.

    Corner: ``OpOverload._schema``, torch/_ops.py, and the tag ``nondeterministic_seeded``,
    aten/src/ATen/native/tags.yaml, tried since 2.11. Operations that take a generator count, tagged or not.
    """
    schema = getattr(operation, "_schema", None)
    takes_generator = schema is not None and any("Generator" in str(argument.type) for argument in schema.arguments)
    return takes_generator or torch.Tag.nondeterministic_seeded in getattr(operation, "tags", ())


@contextmanager
def optimizers_keep_tensors() -> Iterator[None]:
    """A context in which optimizers of ``torch.optim`` read no count of steps as a number, nor refuse a CPU for that.

    Corner: ``torch.compiler._is_compiling_flag``, torch/compiler/__init__.py, and what ``_get_value`` and
    ``capturable=True`` do where it is set, torch/optim/optimizer.py, tried since 2.11.
    """
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def inductor_compile(graph: GraphModule, example: list[Tensor], options: Mapping[str, Any]) -> Callable:
    """Compile a graph with Inductor for inputs that are like ``example``.

    Options that this version of torch does not have are left out.

    Corners: ``torch._inductor.compile`` and ``list_options``, torch/_inductor/__init__.py, with the options of
    torch/_inductor/config.py; ``TracingContext``, torch/_guards.py; ``FakeTensorMode`` and ``ShapeEnv``,
    torch/fx/experimental/symbolic_shapes.py; tried since 2.11. Inductor looks into its cache on disk only where it has
    a context with a ``ShapeEnv``.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
    known = torch._inductor.list_options()
    chosen = {name: value for name, value in options.items() if name in known}
    with warnings.catch_warnings(), tracing(TracingContext(mode)), _memory_formats_by_name(), _one_module_a_file():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        return torch._inductor.compile(graph, example, options=chosen)  # type: ignore[arg-type, return-value]


@contextmanager
def sources_forgotten() -> Iterator[None]:
    """A context at whose end PyTorch forgets the source text of the graphs that were made in it.

    It keeps the text of every ``GraphModule`` as long as the process lives, for debuggers: 0.3 MiB for the graphs of a
    small step. (Text of graphs that another thread makes meanwhile is forgotten, too; all of them run as before.)

    Corner: ``_EvalCacheLoader.eval_cache``, torch/fx/graph_module.py, and ``linecache``, to which it adds its entries,
    tried since 2.11. To delete when PyTorch drops the text with the graph:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/fx/graph_module.py
    """
    before = set(_loader.eval_cache)
    try:
        yield
    finally:
        for name in [name for name in _loader.eval_cache if name not in before]:
            _loader.eval_cache.pop(name, None)
            linecache.cache.pop(name, None)


@contextmanager
def _one_module_a_file() -> Iterator[None]:
    """A context at whose end Inductor has one module of each file that was loaded in it, as long as the process lives.

    It loads a file again for every program, and keeps all of its modules, with the C++ in them: 0.15 MiB of a small
    step. The first is kept for ``cache_clear``, which deletes the files; the others live as long as their program.

    Corner: ``PyCodeCache.modules``, torch/_inductor/codecache.py, tried since 2.11. To delete when Inductor keeps
    weak references: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_inductor/codecache.py
    """
    number = len(_modules_kept())
    try:
        yield
    finally:
        kept = _modules_kept()
        files = {module.__file__ for module in kept[:number]}
        for module in kept[number:]:
            if module.__file__ in files:
                kept.remove(module)
            files.add(module.__file__)


def _modules_kept() -> list[Any]:
    codecache: Any = sys.modules.get("torch._inductor.codecache")  # imported when the first program is compiled
    return [] if codecache is None else codecache.PyCodeCache.modules


@contextmanager
def _memory_formats_by_name() -> Iterator[None]:
    """A context in which ``pickle`` writes a ``torch.memory_format`` alike in every program.

    Otherwise it names whichever module imported torch first, and so does the key of Inductor's cache: a program would
    not find what another has compiled.

    Corner: ``FxGraphCachePickler``, torch/_inductor/codecache.py, which copies ``copyreg.dispatch_table``, tried since
    2.11.
    """
    table, kind = copyreg.dispatch_table, torch.memory_format
    before = table.get(kind)
    copyreg.pickle(kind, lambda one: (_memory_format, (str(one).rpartition(".")[2],)))  # type: ignore[arg-type]
    try:
        yield
    finally:
        if before is None:
            table.pop(kind, None)
        else:
            table[kind] = before


def _memory_format(name: str) -> torch.memory_format:
    return getattr(torch, name)
