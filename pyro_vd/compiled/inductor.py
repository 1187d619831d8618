"""A recorded graph, compiled by Inductor; on a GPU, replayed as a CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vd.compiled._compiler import inductor_compile, sources_forgotten
from pyro_vd.compiled.ahead import compile_elsewhere, portable
from pyro_vd.compiled.draws import Draw, take_out_draws
from pyro_vd.compiled.recording import Recordable, record
from pyro_vd.compiled.user_code import warn_user

_OPTIONS = {
    # Random numbers come from ATen's generators: a compiled step draws what an eager one draws, and faster on a CPU.
    "fallback_random": True,
    # No pattern matcher: it would turn the sum of two gradients, a matrix product and that of the KL, into a product
    # added in place, for which the second gradient must be in memory first.
    "pattern_matcher": False,
    # Tensors keep the layouts of the eager step: random numbers fill a tensor in the order of its memory.
    "layout_optimization": False,
    # Every value with two uses becomes a buffer. Then a sum over weights reads buffers and not the parameters that the
    # step writes, so that it can share the loop that writes them; in that loop most of the buffers vanish.
    "realize_reads_threshold": 0,
}

_CPU_OPTIONS = _OPTIONS | {
    # One C++ function calls all loops. Calls from Python would take longer than many of the loops.
    "cpp_wrapper": True,
    # All loops are in one file, which is faster to compile than a file for each; the calls are in another.
    "cpp_wrapper_build_separate": True,
    # Headers are not compiled beforehand: that takes longer than reading them twice.
    "cpp_cache_precompile_headers": False,
    # Skip the probe of vector instructions: any compiler that builds PyTorch's headers passes it.
    "cpp.vec_isa_ok": True,
}


class CompiledProgram:
    """A compiled graph, with the tensors that it reads and writes besides its arguments.

    Attributes:
        tensors: those tensors; the program holds their storage.
    """

    def __init__(self, run: Callable[..., Sequence[Tensor]], tensors: list[Tensor]):
        self.tensors = tensors
        self._run = run
        self._inputs = [tensor.detach() for tensor in tensors]
        self._replay: Callable[[list[Tensor]], list[Tensor]] | None = None

    def __call__(self, arguments: list[Tensor]) -> Sequence[Tensor]:
        if self._replay is not None:
            return self._replay(arguments)
        return self.on(self._inputs, arguments)

    @torch.no_grad()
    def on(self, tensors: list[Tensor], arguments: list[Tensor]) -> Sequence[Tensor]:
        """Run with other tensors in the place of its own."""
        return self._run(*tensors, *arguments)

    @torch.no_grad()
    def capture(self, arguments: list[Tensor]) -> None:
        """From now on replay the program as one CUDA graph. It has run before; capturing does not run it."""
        held = [argument.clone() for argument in arguments]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = self._run(*self._inputs, *held)
        except RuntimeError as error:
            warn_user(f"expected a step that a CUDA graph can hold, got one that it cannot: {error}")
            return

        def replay(arguments: list[Tensor]) -> list[Tensor]:
            for own, given in zip(held, arguments, strict=True):
                own.copy_(given)
            graph.replay()
            return [output.clone() for output in outputs]

        self._replay = replay


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Recording makes many objects, and importing Inductor too; few are garbage, and the search for it is slow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Recording:
    """A function as a graph, to be compiled.

    Attributes:
        read: the tensors that it reads and writes besides its arguments.
        example: inputs of the graph: those tensors, the arguments, and noise.
        draws: a function for each tensor of noise.
    """

    graph: GraphModule
    read: list[Tensor]
    example: list[Tensor]
    draws: list[Draw]

    @property
    def _options(self) -> dict[str, Any]:
        return _CPU_OPTIONS if all(tensor.is_cpu for tensor in self.example) else _OPTIONS

    @sources_forgotten()
    @_without_garbage_collection()
    def compile(self) -> CompiledProgram:
        """Compile it here, or load it from the compiler's cache on disk."""
        with torch.no_grad():
            run = inductor_compile(self.graph, self.example, self._options)
        draws = self.draws
        return CompiledProgram((lambda *inputs: run(*inputs, *[draw() for draw in draws])) if draws else run, self.read)

    @sources_forgotten()
    def compile_elsewhere(self) -> Popen:
        """Let another process compile it into that cache."""
        return compile_elsewhere(self.graph, self.example, self._options)


@sources_forgotten()
@_without_garbage_collection()
def record_program(
    function: Recordable, tensors: Sequence[Tensor], arguments: Sequence[Tensor], for_elsewhere: bool = False
) -> Recording:
    """Record ``function`` (see :func:`pyro_vd.compiled.recording.record`).

    With ``for_elsewhere`` two processes that record the same function have the same graph.
    """
    graph, read = record(function, tensors, arguments)
    graph, draws, noise = take_out_draws(graph)
    example = [*(tensor.detach() for tensor in (*read, *arguments)), *noise]
    return Recording(portable(graph) if for_elsewhere else graph, read, example, draws)
