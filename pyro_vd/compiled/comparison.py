"""Compiling a step, and comparing what it does with what the eager step does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vd.compiled.agreement import MEANS, agree, moved_alike, only_rounding, same_noise
from pyro_vd.compiled.optimizers import StepOptimizer

if TYPE_CHECKING:
    from pyro_vd.compiled.inductor import CompiledProgram, Recording


@dataclass(frozen=True)
class Trial:
    """A compiled step, taken on copies of its tensors with the noise that the next eager step will have.

    Attributes:
        outputs: what it returned: the loss first.
        before, after: copies of the tensors of the program, as they were and as the step left them.
    """

    program: CompiledProgram
    outputs: Sequence[Tensor]
    before: list[Tensor]
    after: list[Tensor]

    def agrees(
        self, loss: Tensor, gradients: list[Tensor | None], parameters: Sequence[Tensor], optimizer: StepOptimizer
    ) -> bool:
        """Whether an eager step, taken since, has the same loss and has changed the same tensors alike."""
        only_noise = _moved_by_rounding(gradients, parameters, optimizer)
        means = set(optimizer.state()).difference(optimizer.counts())
        return agree(self.outputs[0], loss) and all(
            moved_alike(old, copy, now.detach(), only_noise.get(now), MEANS if now in means else 0.0)
            for now, copy, old in zip(self.program.tensors, self.after, self.before, strict=True)
        )

    @torch.no_grad()
    def commit(self) -> None:
        """Write what the compiled step has made into the tensors of the program."""
        for tensor, value in zip(self.program.tensors, self.after, strict=True):
            if tensor.data_ptr() != value.data_ptr():  # one that is expanded has no copy
                tensor.copy_(value)


def record_step(parts: tuple, tensors: list[Tensor], *step: Any, for_elsewhere: bool = False) -> Recording:
    """Record a step, to be compiled; this imports the compiler.

    Args:
        parts: of :class:`pyro_vd.compiled.step.StepInputs`.
        tensors: those among the arguments of the step.
        *step: the other arguments of :func:`pyro_vd.compiled.step.recordable_step`.
        for_elsewhere: as in :func:`pyro_vd.compiled.inductor.record_program`.
    """
    from pyro_vd.compiled.inductor import record_program
    from pyro_vd.compiled.step import StepInputs, recordable_step

    read = StepInputs(*parts)
    return record_program(recordable_step(read, *step), read.flat(), tensors, for_elsewhere)


def tried(program: CompiledProgram, tensors: list[Tensor]) -> Trial:
    """Take a compiled step on copies."""
    before = [_copied(tensor) for tensor in program.tensors]
    after = [_copied(tensor) for tensor in before]
    with same_noise([*program.tensors, *tensors]):
        return Trial(program, program.on(after, tensors), before, after)


def _copied(tensor: Tensor) -> Tensor:
    """A copy with the strides that a program expects. An expanded tensor is not copied: nothing writes to it."""
    tensor = tensor.detach()
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _moved_by_rounding(
    gradients: list[Tensor | None], parameters: Sequence[Tensor], optimizer: StepOptimizer
) -> dict[Tensor, Tensor]:
    """What the gradients of a step change, with a mask of the elements for which they are only rounding."""
    owners = optimizer.owners(parameters)
    return {
        tensor: mask
        for parameter, own, mask in zip(parameters, owners, only_rounding(gradients), strict=True)
        for tensor in (*own, parameter.grad)
        if tensor is not None
    }
