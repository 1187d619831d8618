"""The programs of one loss, by all that they rest on, until one cannot be had."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from pyro_vd.compiled.loss_program import Evaluation

# More than these shapes and modes, and something is changing that should be a tensor.
MAX_PROGRAMS = 8


class Programs(dict[Any, Any]):
    """Programs by key.

    Args:
        evaluation: what is compiled.
        kind: "a step" or "a loss", and what to use instead: for messages.
        strict: raise where a program cannot be had.
        depth: of the user's call above :meth:`give_up`, for the warning.

    Attributes:
        ended: whether there are none any more, and all is eager.
    """

    def __init__(self, evaluation: Evaluation, kind: tuple[str, str], strict: bool, depth: int):
        super().__init__()
        self.strict, self.ended = strict, False
        self._evaluation, self._kind, self._depth = evaluation, kind, depth

    def key(self, args: tuple, kwargs: dict, *more: Any) -> tuple[list[Tensor], Any] | None:
        """The tensors among the arguments, and the key of the program for them; None where there can be none."""
        try:
            tensors, signature = self._evaluation.signature(args, kwargs)
        except TypeError as error:
            return self.give_up(f"an argument is neither a tensor nor hashable: {error}")
        key = signature, *more
        if key not in self and len(self) == MAX_PROGRAMS:
            return self.give_up(
                f"it has been compiled {MAX_PROGRAMS} times, and shapes, arguments that are no tensors, options of the "
                "optimizer or attributes of the modules are new again"
            )
        return tensors, key

    def give_up(self, reason: str) -> None:
        """Warn, or raise ValueError if strict; there are no programs from here on."""
        kind, instead = self._kind
        message = f"expected {kind} that can be compiled, got one that cannot: {reason}"
        if self.strict:
            raise ValueError(f"{message}; {instead}, or write strict=False to go on eagerly")
        warnings.warn(f"{message}. It is eager from here on", stacklevel=self._depth)
        self.ended = True
        self.clear()
