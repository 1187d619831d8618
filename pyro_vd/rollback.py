"""What a run of a net changes besides its output, and how it is undone: buffers, and tensors in attributes.

A step that fails, and every prediction, leaves a net as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

MISSING: Any = object()  # the value of an entry that was not there


class undone(ContextDecorator):
    """Within it nets may run; at its end, or only where an exception ends it, their buffers are as before.

    A class, and no generator: it is entered in every step. It is the log of the values before their first change.
    """

    def __init__(self, only_on_failure: bool = False):
        self.only_on_failure = only_on_failure
        self.buffers: dict[Tensor, Any] = {}
        self.entries: list[tuple[dict, str, Any]] = []

    def __enter__(self) -> None:
        self._token = _ACTIVE.set((*_ACTIVE.get(), self))

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if (self.buffers or self.entries) and (kind is not None or not self.only_on_failure):
                self._undo()
        finally:
            _ACTIVE.reset(self._token)

    def _recreate_cm(self) -> undone:  # what a decorated function runs in
        return undone(self.only_on_failure)

    @torch.no_grad()
    def _undo(self) -> None:
        for buffer, value in self.buffers.items():
            buffer.copy_(value)
        for entries, key, value in reversed(self.entries):
            restore_entry(entries, key, value)


_ACTIVE: ContextVar[tuple[undone, ...]] = ContextVar("_ACTIVE", default=())


@contextmanager
def gradients_added() -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """Within it backward passes run; where one or an interrupt fails, all leaves have the gradients of before.

    What it gives is called with the leaves that a backward pass reaches, before it runs.
    """
    before: dict[Tensor, Tensor | None] = {}

    def begin(leaves: Iterable[Tensor]) -> None:
        for leaf in leaves:
            if leaf.is_leaf and leaf not in before:
                before[leaf] = leaf.grad
                leaf.grad = None

    try:
        yield begin
        sums = {leaf: old if leaf.grad is None else old + leaf.grad for leaf, old in before.items() if old is not None}
        for leaf, total in sums.items():
            leaf.grad = total
    except BaseException:
        for leaf, old in before.items():
            leaf.grad = old
        raise


@torch.no_grad()
def write_buffers(updates: Mapping[Tensor, Tensor]) -> None:
    """Write new values to buffers, all or none, without a host synchronisation.

    None where an element is not finite that was so before: a batch with NaN. (A mask may hold infinities.)
    """
    spoiled = [
        (torch.isfinite(own) & ~torch.isfinite(new)).any()
        for own, new in updates.items()
        if own.is_floating_point() or own.is_complex()
    ]
    good = ~torch.stack(spoiled).any() if spoiled else None
    for own, new in updates.items():
        logs = [log for log in _ACTIVE.get() if own not in log.buffers]
        before = own.clone() if logs else None
        for log in logs:
            log.buffers[own] = before
        own.copy_(new if good is None else torch.where(good, new, own))


def note_buffers(module: Any) -> None:
    """Note the buffers of a module, which is about to run, as they are."""
    for key, buffer in module._buffers.items():
        if buffer is None:
            continue
        logs = [log for log in _ACTIVE.get() if buffer not in log.buffers]
        if not logs:
            continue
        before = buffer.detach().clone()
        for log in logs:
            log.buffers[buffer] = before
            log.entries.append((module._buffers, key, buffer))


def note_entry(entries: dict, key: str, before: Any) -> None:
    """Note that an entry of a module's attributes or buffers was ``before``."""
    for log in _ACTIVE.get():
        log.entries.append((entries, key, before))


def restore_entry(entries: dict, key: str, value: Any) -> None:
    """Set an entry to what it was."""
    if value is MISSING:
        entries.pop(key, None)
    else:
        entries[key] = value


def refill(container: Any, content: Any) -> None:
    """Give a list or dict the content it had."""
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)
