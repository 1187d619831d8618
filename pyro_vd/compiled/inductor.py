"""A recorded program, compiled by Inductor; on a GPU, replayed as a CUDA graph."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch._inductor
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pyro_vd.compiled.draws import take_out_draws
from pyro_vd.compiled.recording import Program, record

# ATen's generators, so that a compiled step draws what an eager one draws; on a CPU they are also the faster ones.
# Without the pattern matcher: it would turn a gradient of two terms, a product and that of the KL, into a product added
# in place, which needs the second term in memory first. In the layouts of the eager step: random numbers fill a
# tensor as it lies. What is used twice is a buffer: then a sum over weights reads buffers, and not the parameters that
# the step writes, and can be taken in the loop that writes them, where most of the buffers vanish.
_OPTIONS = {
    "fallback_random": True,
    "pattern_matcher": False,
    "layout_optimization": False,
    "realize_reads_threshold": 0,
}

# On a CPU one C++ file has all loops and another calls them: less to compile than a file for each loop, and less
# between two loops than Python needs. Headers are read twice in all, so compiling them beforehand takes longer. And the
# compiler is not tried out on vector instructions that any has which can read PyTorch's headers.
_CPU_OPTIONS = _OPTIONS | {
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "cpp_cache_precompile_headers": False,
    "cpp.vec_isa_ok": True,
}


class CompiledProgram:
    """A compiled program and the tensors that it reads and writes besides its arguments.

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
        """From now on replay the program as one CUDA graph. It is warm already; capturing runs nothing."""
        held = [argument.clone() for argument in arguments]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = self._run(*self._inputs, *held)
        except RuntimeError as error:
            warnings.warn(f"expected a step that a CUDA graph can hold, got one that it cannot: {error}", stacklevel=2)
            return

        def replay(arguments: list[Tensor]) -> list[Tensor]:
            for own, given in zip(held, arguments, strict=True):
                own.copy_(given)
            graph.replay()
            return [output.clone() for output in outputs]

        self._replay = replay


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Recording makes many objects, and imports Inductor's; hardly any are garbage, and looking for it is slow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_garbage_collection()
def compile_program(program: Program, tensors: Sequence[Tensor], arguments: Sequence[Tensor]) -> CompiledProgram:
    """Record ``program`` (see :func:`pyro_vd.compiled.recording.record`) and compile it."""
    graph, read = record(program, tensors, arguments)
    graph, draws, noise = take_out_draws(graph)
    example = [*(tensor.detach() for tensor in (*read, *arguments)), *noise]
    # Inductor looks into its cache on disk where shapes might vary, which they do not here.
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
    with torch.no_grad(), warnings.catch_warnings(), tracing(TracingContext(mode)):
        warnings.simplefilter("ignore")  # of the compiler, about itself
        wanted = _CPU_OPTIONS if all(tensor.is_cpu for tensor in example) else _OPTIONS
        known = torch._inductor.list_options()  # which are not the same in every version of PyTorch
        options = {name: value for name, value in wanted.items() if name in known}
        run = torch._inductor.compile(graph, example, options=options)  # type: ignore[arg-type]
    if not draws:
        return CompiledProgram(run, read)  # type: ignore[arg-type]
    return CompiledProgram(lambda *inputs: run(*inputs, *[draw() for draw in draws]), read)  # type: ignore[arg-type]
