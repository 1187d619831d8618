"""A line on a terminal while a compilation takes long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0  # until the line is written, and between two updates of it


@contextmanager
def progress(what: str) -> Iterator[None]:
    """A context in which one line on stderr says what is compiled and for how long, from 5 s on, if that is a terminal.

    ``python program.py 2> file``, a notebook, a scheduler of jobs: nothing is written there.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    done, start = threading.Event(), time.monotonic()

    def report() -> None:
        line = False
        while not done.wait(SECONDS):
            line = True
            _write(f"\rpyro_vd: compiling {what}, {time.monotonic() - start:.0f} s ...")
        if line:
            _write(" done\n")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # a terminal that was closed does not end a training
        pass
