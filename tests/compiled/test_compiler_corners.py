"""Canaries: one for each private corner of torch that the compiled step uses; a failure names what broke."""

from __future__ import annotations

import copyreg
import pickle

import torch
from torch import nn
from torch.func import functionalize

from pyro_vd.compiled import _compiler


def test_make_fx_records_below_modules_and_allows_real_tensors():
    layer = nn.Linear(2, 2)
    graph = _compiler.graph_of(lambda x: layer(x).relu(), torch.ones(3, 2))
    names = [str(node.target) for node in graph.graph.nodes]
    assert "aten.relu.default" in names, "make_fx no longer records ATen operations"
    assert torch.equal(graph(torch.ones(3, 2)), layer(torch.ones(3, 2)).relu())
    assert all("val" in n.meta for n in graph.graph.nodes if n.op == "call_function"), "make_fx: no node.meta['val']"


def test_make_fx_takes_decompositions():
    table = {torch.ops.aten.relu.default: lambda x: x.clamp(min=0)}
    graph = _compiler.graph_of(torch.relu, torch.ones(2), decompositions=table)
    assert "aten.clamp.default" in [str(node.target) for node in graph.graph.nodes], "make_fx: decomposition_table"


def test_recorded_tensors_are_told_from_real_ones():
    seen = []

    def function(x):
        seen.append(_compiler.is_recorded(x))
        return x + 1

    _compiler.graph_of(function, torch.ones(2))
    assert seen == [True], "FakeTensor is no longer what make_fx passes"
    seen.clear()
    functionalize(function)(torch.ones(2))
    assert seen == [True], "is_functorch_wrapped_tensor"
    assert not _compiler.is_recorded(torch.ones(2))


def test_torch_function_can_be_seen_to_be_disabled():
    assert _compiler.overrides_are_on(), "_is_torch_function_enabled"
    with torch._C.DisableTorchFunctionSubclass():
        assert not _compiler.overrides_are_on(), "_is_torch_function_enabled"


def test_the_version_of_a_tensor_counts_writes():
    tensor = torch.ones(2).clone()
    assert not _compiler.was_written(tensor), "Tensor._version of a new tensor"
    tensor.detach().requires_grad_()
    assert not _compiler.was_written(tensor)
    with torch.no_grad():
        tensor.detach().mul_(2)
    assert _compiler.was_written(tensor), "Tensor._version is no longer shared with what detach() returns"


def test_schemas_say_what_writes_and_what_is_random():
    aten = torch.ops.aten
    assert (_compiler.writes(aten.add_.Tensor), _compiler.writes(aten.add.Tensor)) == (True, False), (
        "OpOverload._schema"
    )
    assert _compiler.writes(len) is None
    assert torch.Tag.nondeterministic_seeded in aten.randn.default.tags, "Tag.nondeterministic_seeded"
    assert _compiler.is_random(aten.bernoulli_.float) and not _compiler.is_random(aten.mul.Tensor)


def test_inductor_has_the_options_and_is_given_no_others(monkeypatch):
    from pyro_vd.compiled.inductor import _CPU_OPTIONS

    known = torch._inductor.list_options()
    assert set(_CPU_OPTIONS) <= set(known), f"torch._inductor.config: {set(_CPU_OPTIONS) - set(known)} are gone"
    given = {}

    def compiled(graph, example, options):
        given.update(options)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    graph = _compiler.graph_of(torch.sin, torch.ones(2))
    run = _compiler.inductor_compile(graph, [torch.ones(2)], {"fallback_random": True, "no such option": 1})
    assert run is graph and given == {"fallback_random": True}


def test_the_key_of_the_compilers_cache_is_that_of_every_program(monkeypatch):
    seen = []

    def compiled(graph, example, options):
        seen.append(pickle.dumps(torch.contiguous_format))
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    table = dict(copyreg.dispatch_table)
    _compiler.inductor_compile(_compiler.graph_of(torch.sin, torch.ones(2)), [torch.ones(2)], {})
    # Outside, pickle names the module that imported torch first.
    assert b"_compiler" in seen[0] and b"_compiler" not in pickle.dumps(torch.contiguous_format)
    assert pickle.loads(seen[0]) is torch.contiguous_format
    assert copyreg.dispatch_table == table


def test_a_context_with_shapes_is_there_while_inductor_compiles(monkeypatch):
    seen = []

    def compiled(graph, example, options):
        context = torch._guards.TracingContext.try_get()
        seen.append(None if context is None else context.fake_mode.shape_env)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    _compiler.inductor_compile(_compiler.graph_of(torch.sin, torch.ones(2)), [torch.ones(2)], {})
    assert seen[0] is not None, "torch._guards.TracingContext: Inductor finds no cache on disk without it"
