"""The line on a terminal while a compilation takes long; nothing anywhere else."""

from __future__ import annotations

import io
import time

import pytest

from pyro_vd.compiled import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.02)


def wait_for(stream, text):
    for _ in range(500):
        if text in stream.getvalue():
            return
        time.sleep(0.01)
    raise AssertionError(stream.getvalue())


def test_a_long_compilation_writes_one_line_on_a_terminal(monkeypatch, quick):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.progress("the step of 12 parameters"):
        wait_for(stream, "compiling")
    text = stream.getvalue()
    assert text.startswith("\rpyro_vd: compiling the step of 12 parameters, ")
    assert text.endswith(" s ... done\n") and text.count("\n") == 1


def test_a_short_one_writes_nothing(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.progress("the step"):
        pass
    assert stream.getvalue() == ""


def test_no_terminal_no_line(monkeypatch, quick):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.progress("the step"):
        time.sleep(0.1)
    assert stream.getvalue() == ""
    monkeypatch.setattr("sys.stderr", None)
    with progress.progress("the step"):
        pass


def test_the_line_ends_with_an_interrupt(monkeypatch, quick):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(KeyboardInterrupt), progress.progress("the step"):
        wait_for(stream, "compiling")
        raise KeyboardInterrupt
    ended = stream.getvalue()
    time.sleep(0.1)
    assert stream.getvalue() == ended and ended.endswith("\n")
