"""Compilation by another process, into the cache that the compiler keeps on disk, while steps here stay eager."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vd.compiled.cache import MAX_PROGRAMS

if TYPE_CHECKING:
    from pyro_vd.compiled.inductor import Recording

# A graph, the kinds of its inputs, options of the compiler, and the number of threads that the program will use.
_Kind = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
_Work = tuple[GraphModule, list[_Kind], dict[str, Any], int]


def portable(graph: GraphModule) -> GraphModule:
    """The graph as another process receives it.

    Names of values are made again, and the compiler's cache depends on names: both processes compile this form. A graph
    that cannot be pickled is returned as it is.
    """
    try:
        return pickle.loads(pickle.dumps(graph))
    except Exception:  # pickle raises what the objects in the graph raise
        return graph


def compile_elsewhere(graph: GraphModule, example: list[Tensor], options: Mapping[str, Any]) -> subprocess.Popen:
    """Start a process that compiles a :func:`portable` graph and has less priority than this one.

    It leaves the program in Inductor's cache on disk, where a later compilation here finds it. It hands nothing else
    over: if it fails, the compilation here does all the work, or names the reason.
    """
    kinds = [(tuple(one.shape), one.stride(), one.dtype, one.device) for one in example]
    work: _Work = (graph, kinds, dict(options), torch.get_num_threads())
    with tempfile.TemporaryFile() as file:
        pickle.dump(work, file)
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import _compile; _compile()"],
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C interrupts the training, and not this
        )


class Elsewhere:
    """The processes that compile the programs of one training, one after another."""

    def __init__(self) -> None:
        self._begun: dict[Hashable, subprocess.Popen] = {}

    def is_busy(self) -> bool:
        """Whether one is at work."""
        return any(process.poll() is None for process in self._begun.values())

    def begin(self, key: Hashable, recording: Recording) -> bool:
        """Begin the program of ``key``; False where it is to be compiled here, or to be loaded."""
        if key in self._begun or len(self._begun) >= MAX_PROGRAMS:
            return False
        try:
            process = recording.compile_elsewhere()
        except Exception:  # a graph that cannot be pickled, or a system that starts no process
            return False
        self._begun[key] = process
        weakref.finalize(self, _end, process)
        return True


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _compile() -> None:
    """What the other process does: read the work from its standard input, and compile."""
    from pyro_vd.compiled._compiler import inductor_compile

    graph, kinds, options, threads = pickle.load(sys.stdin.buffer)
    with suppress(AttributeError, OSError):
        os.nice(10)
    torch.set_num_threads(threads)
    example = [torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype, device in kinds]
    with torch.no_grad():
        inductor_compile(graph, example, options)
