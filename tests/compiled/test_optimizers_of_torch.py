"""Every optimizer of torch and Pyro is part of a compiled step, or is refused by name with what to write instead."""

from __future__ import annotations

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn, optim

import pyro_vd as vd
from helpers.svi_runs import HandWritten, Task, assert_same, run, values, without_compiler
from pyro_vd.compiled import _compiler
from pyro_vd.guides import AutoMeanField

RATE = {"lr": 0.01}
COMPILED = {
    "Adadelta": {},
    "Adagrad": {"lr_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {"weight_decay": 0.1},
    "ASGD": {"t0": 2.0},
    "NAdam": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {},
    "RMSprop": {"centered": True, "momentum": 0.9},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}
REFUSED = {
    "Adafactor": "got Adafactor, which cannot be recorded .torch.Tensor.item reads the number in a tensor.",
    "LBFGS": "got LBFGS, which evaluates the loss itself",
    "SparseAdam": "got SparseAdam, whose gradients are those of torch.nn.Embedding",
}
OF_PYRO = {
    "ClippedAdam": "changes its options .'lr'.",
    "DCTAdam": "changes its options .'lr'.",
    "AdagradRMSProp": "'lr'",
}


def steps(kind, make, number):
    task = Task(lambda: nn.Linear(5, 3), AutoMeanField, dist.Normal(0.0, 1.0))
    strict = {"strict": True} if kind is vd.CompiledSVI else {}
    svi = kind(task.model, task.guide, make(), vd.TraceVD_ELBO(), **strict)
    losses = run(svi.step, task.batches, number)
    if strict:
        assert len(svi._programs) == 1
    return losses, values()


def test_every_optimizer_of_torch_is_in_a_list():
    kinds = {n for n, kind in vars(optim).items() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)}
    # Muon takes matrices alone, and says so itself.
    assert kinds - {"Optimizer", "Muon"} == COMPILED.keys() | REFUSED.keys()


@pytest.mark.parametrize("of_pyro", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torch", "pyro"])
@pytest.mark.parametrize("name", ["ASGD", "Adagrad", "Adamax", "NAdam", "RAdam"])  # which count steps in numbers
def test_counted_steps_are_recorded_and_agree(monkeypatch, name, of_pyro):
    without_compiler(monkeypatch)
    options = RATE | COMPILED[name]
    if of_pyro:
        makes, kinds = functools.partial(getattr(pyro.optim, name), options), (vd.CompiledSVI, SVI)
    else:
        makes = functools.partial(functools.partial, getattr(optim, name), **options)
        kinds = (vd.CompiledSVI, HandWritten)
    found, expected = (steps(kind, makes, 5) for kind in kinds)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert_same(found[1], expected[1], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ASGD", "RAdam"])
def test_they_are_compiled_and_agree(name):
    make = functools.partial(functools.partial, getattr(optim, name), **RATE | COMPILED[name])
    found, expected = steps(vd.CompiledSVI, make, 7), steps(HandWritten, make, 7)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert_same(found[1], expected[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda n=n: functools.partial(getattr(optim, n), lr=0.01), m) for n, m in REFUSED.items()),
        *((lambda n=n: getattr(pyro.optim, n)({"eta" if "RMS" in n else "lr": 0.01}), m) for n, m in OF_PYRO.items()),
        (lambda: pyro.optim.SparseAdam(RATE), REFUSED["SparseAdam"]),
    ],
    ids=itertools.chain(REFUSED, OF_PYRO, ["pyro SparseAdam"]),
)
def test_the_others_are_refused_by_name(monkeypatch, make, message):
    without_compiler(monkeypatch)
    task = Task(lambda: nn.Linear(5, 3))
    _ = task.guide(*task.batches[0])
    before = values()
    with pytest.raises(ValueError, match=f"(?s){message}.*torch.optim.Adam"):
        svi = vd.CompiledSVI(task.model, task.guide, make(), vd.TraceVD_ELBO())
        before = (svi.step(*task.batches[0]), values())[1]
        svi.step(*task.batches[0])
    assert_same(values(), before, 0.0)


@pytest.mark.parametrize("make", [functools.partial(optim.SparseAdam, lr=0.1), lambda: 0], ids=["partial", "lambda"])
def test_sparse_adam_is_refused_before_the_first_step(make):
    task = Task(lambda: nn.Linear(5, 3))
    make = make if isinstance(make, functools.partial) else lambda parameters: optim.SparseAdam(parameters, lr=0.1)
    with pytest.raises(ValueError, match="SparseAdam"):
        _ = vd.CompiledSVI(task.model, task.guide, make, vd.TraceVD_ELBO()).optimizer


def test_the_flag_of_the_compiler_is_put_back():
    before = torch.compiler.is_compiling()
    with pytest.raises(KeyError), _compiler.optimizers_keep_tensors():
        assert torch.compiler.is_compiling(), "torch.compiler._is_compiling_flag"
        raise KeyError
    assert torch.compiler.is_compiling() is before is False


class Masked(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y - y[y > 0].sum()


def test_a_shape_that_depends_on_values_is_named_with_its_line(monkeypatch):
    without_compiler(monkeypatch)
    task = Task(lambda: Masked(5, 3))
    svi = vd.CompiledSVI(task.model, task.guide, functools.partial(optim.Adam, lr=0.01), vd.TraceVD_ELBO())
    with pytest.warns(UserWarning, match=r"(?s)__getitem__ has a result whose shape.*torch.where.*y - y\[y > 0\]"):
        run(svi.step, task.batches, 2)
