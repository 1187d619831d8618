"""A cache of compiled programs, which is disabled at the first failure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vd.compiled.surroundings import Surroundings
from pyro_vd.compiled.user_code import warn_user

# If there are more programs, something changes that should be a tensor.
MAX_PROGRAMS = 8
# After new plain values around the model this many times in a row, they are taken to be new in every step.
MAX_IN_A_ROW = 4


@dataclass(eq=False)
class _Entry:
    program: Any
    reads: list[tuple[int, Tensor, int]]  # of the surroundings: which tensor must be where, and its address
    valid_in: Surroundings  # those in which ``reads`` was last found true

    def is_valid(self, surroundings: Surroundings) -> bool:
        if self.valid_in is not surroundings:
            tensors = surroundings.tensors
            for place, tensor, address in self.reads:
                if place >= len(tensors) or tensors[place] is not tensor or tensor.data_ptr() != address:
                    return False
            self.valid_in = surroundings
        return True


class ProgramCache:
    """Compiled programs of one loss.

    Args:
        walk: finds the surroundings of the loss.
        kind: what is compiled, for messages: "a step" or "a loss".
        instead: what to use where it cannot be.
        strict: raise where a program cannot be had.

    Attributes:
        ended: whether the cache is disabled, and all is eager.
    """

    def __init__(self, walk: Callable[[], Surroundings], kind: str, instead: str, strict: bool):
        self.strict, self.ended = strict, False
        self._walk, self._kind, self._instead = walk, kind, instead
        self._entries: dict[Hashable, _Entry] = {}
        self._surroundings: Surroundings | None = None
        self._versions: dict[Any, tuple[int, Surroundings]] = {}  # of the surroundings, by their key
        self._version = 0
        self._in_a_row, self._last_compiled = 0, -1

    def __len__(self) -> int:
        return len(self._entries)

    def surroundings(self) -> Surroundings:
        """What the loss reads besides its arguments now; the same object as long as nothing has changed."""
        if self._surroundings is None or not self._surroundings.unchanged():
            self._surroundings = found = self._walk()
            if found.key not in self._versions:
                if self.ended or len(self._versions) > 10 * MAX_PROGRAMS:
                    self.clear()
                self._version += 1
                self._versions[found.key] = self._version, found
            self._version, _ = self._versions[found.key]
        return self._surroundings

    def look_again(self) -> None:
        """Walk the surroundings again: an optimizer has been made, and belongs to them."""
        self._surroundings = None

    def find(self, key: Hashable, surroundings: Surroundings) -> Any:
        """The program of ``key`` in these surroundings, or None."""
        entry = self._entries.get((self._version, key))
        if entry is None:
            return None
        if entry.is_valid(surroundings):
            self._in_a_row = 0
            return entry.program
        del self._entries[self._version, key]  # a tensor that it reads has been replaced
        return None

    def may_compile(self) -> bool:
        """Whether one program more may be compiled; if not, the cache is disabled."""
        changed = self._difference()
        if self._version != self._last_compiled and self._in_a_row + 1 >= MAX_IN_A_ROW:
            self.give_up(
                f"{changed or 'what the model reads from elsewhere'} has a new value in every step; make it a tensor"
            )
        elif len(self) >= MAX_PROGRAMS:
            self.give_up(
                f"it has been compiled {MAX_PROGRAMS} times, and shapes, arguments that are not tensors, options of "
                f"the optimizer or {changed or 'attributes of the modules'} are new again; pad sequences of many "
                "lengths to a few, with a mask (docs/compiled.md)"
            )
        return not self.ended

    def add(self, key: Hashable, program: Any, read: Sequence[Tensor], surroundings: Surroundings) -> None:
        """Keep a program that was recorded in ``surroundings`` and reads the tensors ``read``."""
        own = {tensor: None for tensor in read}
        reads = [(i, t, t.data_ptr()) for i, t in enumerate(surroundings.tensors) if t in own]
        self._entries[self._version, key] = _Entry(program, reads, surroundings)
        self._in_a_row = self._in_a_row + 1 if self._version != self._last_compiled else 0
        self._last_compiled = self._version

    def clear(self) -> None:
        """Forget all programs."""
        self._entries.clear()
        self._versions.clear()

    def give_up(self, reason: str) -> None:
        """Disable the cache with a warning; if strict, raise ValueError and leave it as it is."""
        message = f"expected {self._kind} that can be compiled, got one that cannot: {reason}"
        if self.strict:
            raise ValueError(f"{message}; {self._instead}, or write strict=False to go on eagerly")
        self.ended = True
        self.clear()
        warn_user(f"{message}. It is eager from here on")

    def _difference(self) -> str | None:
        """Where the surroundings are not those of the last program."""
        now = self._surroundings
        for version, before in self._versions.values():
            if version == self._last_compiled and now is not None and version != self._version:
                pairs = zip(before.key, now.key, now.names, strict=False)
                return next((name for old, new, name in pairs if old != new), None)
        return None
