"""What an interrupt leaves open in Pyro is closed: one canary for each private corner."""

from __future__ import annotations

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample, pyro_method
from pyro.nn.module import _Context
from pyro.poutine.runtime import _PYRO_STACK

from pyro_vd._pyro_interrupted import handlers_kept
from pyro_vd.weights.drawn import note_draw, one_warning


class Drawn(PyroModule):
    def __init__(self):
        super().__init__()
        self.x = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self):
        assert self.x is self.x  # kept for one call
        return self.x

    @pyro_method
    def again(self):
        return self.x


class Outer(PyroModule):
    """Goes on after an interrupted call of ``inner``, which shares its context."""

    def __init__(self):
        super().__init__()
        self.inner = Drawn()

    def forward(self, interrupted):
        first = self.inner()
        with pytest.raises(KeyboardInterrupt):
            interrupted(self.inner)
        return first, self.inner()


def test_a_handler():
    with pytest.raises(KeyboardInterrupt), handlers_kept():
        poutine.trace().__enter__()
        raise KeyboardInterrupt
    assert not _PYRO_STACK, "pyro.poutine.runtime._PYRO_STACK changed"


def test_a_plate():
    with pytest.raises(KeyboardInterrupt), handlers_kept():
        pyro.plate("data", 3).__enter__()
        raise KeyboardInterrupt
    with pyro.plate("data", 3) as indices:  # no duplicate: else pyro.poutine.runtime._DIM_ALLOCATOR changed
        assert len(indices) == 3


def test_gradients_that_are_not_recorded():
    with pytest.raises(KeyboardInterrupt), handlers_kept():
        torch.no_grad().__enter__()
        raise KeyboardInterrupt
    assert torch.is_grad_enabled()


def test_a_context_of_this_library():
    state = SimpleNamespace(site="w", estimator="local", warned=set())
    with pytest.raises(KeyboardInterrupt), handlers_kept():
        one_warning().__enter__()
        raise KeyboardInterrupt
    with pytest.warns(UserWarning, match="site 'w': expected an operation with a rule"):  # and not noted for later
        note_draw(state, "cos")


@pytest.fixture
def interrupted(monkeypatch):
    """Calls a module, with an interrupt where the call ends."""

    def cut_off(*args):
        raise KeyboardInterrupt

    def call(module, method=Drawn.__call__):
        with monkeypatch.context() as patch, handlers_kept():
            patch.setattr(_Context, "__exit__", cut_off)
            method(module)

    return call


@pytest.mark.parametrize("method", [Drawn.__call__, Drawn.again], ids=["call", "method"])
def test_the_call_of_a_module(interrupted, method):
    module = Drawn()
    with pytest.raises(KeyboardInterrupt):
        interrupted(module, method)
    assert not torch.equal(module(), module()), "pyro.nn.module._Context changed"


def test_a_call_around_it_goes_on(interrupted):
    outer = Outer()
    first, second = outer(interrupted)
    assert torch.equal(first, second)  # of one call
    assert not torch.equal(first, outer.inner())
