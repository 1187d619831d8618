"""An interrupt that comes when a step is complete says so, and the next step is the next one."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

import pyro_vd as vd
from helpers.svi_runs import ADAM, Task
from pyro_vd.compiled import transaction


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupt_at_the_very_end_of_an_eager_step(monkeypatch, accumulate):
    @contextmanager
    def interrupted():
        yield
        raise KeyboardInterrupt

    task = Task()
    svi = vd.CompiledSVI(task.model, task.guide, ADAM, vd.TraceVD_ELBO(), accumulate=accumulate)
    before = [value.detach().clone() for value in task.parameters()]
    with monkeypatch.context() as patch:
        patch.setattr(transaction, "handlers_kept", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            svi.step(*task.batches[0])
    assert caught.value.__notes__ == ["pyro_vd: step 1 of CompiledSVI was complete when this came"]
    assert svi._steps == 1
    moved = any((now != then).any() for now, then in zip(task.parameters(), before, strict=True))
    assert moved is (accumulate == 1)
