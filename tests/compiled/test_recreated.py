"""What PyTorch would keep of every program as long as the process lives: none of it is left when a program was made."""

from __future__ import annotations

import linecache

import torch
from torch.fx.graph_module import _loader

import pyro_vd as vd
from helpers.svi_runs import ADAM, Task, run, without_compiler
from pyro_vd.compiled import _compiler
from pyro_vd.compiled.inductor import record_program


def test_the_source_text_of_graphs_is_forgotten(monkeypatch):
    graphs = without_compiler(monkeypatch)
    before, lines = set(_loader.eval_cache), set(linecache.cache)
    task = Task()
    run(vd.CompiledSVI(task.model, task.guide, ADAM, vd.TraceVD_ELBO(), strict=True).step, task.batches, 3)
    assert len(graphs) == 1
    assert set(_loader.eval_cache) == before, "_EvalCacheLoader.eval_cache"
    assert not [name for name in set(linecache.cache) - lines if "eval_with_key" in name], "linecache"


def test_the_source_text_of_the_users_graphs_is_kept():
    traced = torch.fx.symbolic_trace(torch.nn.ReLU())
    name = traced.forward.__code__.co_filename
    assert name in _loader.eval_cache, "_EvalCacheLoader.eval_cache no longer holds the text of a graph"
    recording = record_program(lambda tensors, inputs, _: [tensors[0] + inputs[0]], [torch.ones(2)], [torch.ones(2)])
    assert name in _loader.eval_cache and linecache.getlines(name)
    assert recording.graph(torch.ones(2), torch.ones(2))[0].tolist() == [2.0, 2.0]  # runs without its text


def test_inductor_keeps_one_module_of_a_file(monkeypatch):
    from torch._inductor.codecache import PyCodeCache

    def compiled(graph, example, options):
        key, path = PyCodeCache.write("text = 'of a program'")
        return PyCodeCache.load_by_key_path(key, path, attrs={"constant": len(PyCodeCache.modules)})

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    graph, before = _compiler.graph_of(torch.sin, torch.ones(2)), list(PyCodeCache.modules)
    loaded = [_compiler.inductor_compile(graph, [torch.ones(2)], {}) for _ in range(3)]
    assert len(set(map(id, loaded))) == 3, "PyCodeCache.load_by_key_path no longer loads a file again"
    assert PyCodeCache.modules == [*before, loaded[0]], "PyCodeCache.modules"
    PyCodeCache.modules.remove(loaded[0])
