"""A step as a function to record: loss, gradients, optimizer, and what is kept where a step is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vd._torch import full_name
from pyro_vd.compiled._compiler import optimizers_keep_tensors, was_written
from pyro_vd.compiled.loss_program import LossProgram, all_finite
from pyro_vd.compiled.optimizers import StepOptimizer, UnrecordableOptimizer
from pyro_vd.compiled.recording import Recordable, Substitute


@dataclass(frozen=True)
class StepInputs:
    """All tensors that a step is known to read.

    Attributes:
        parameters: what is trained.
        sums: for each parameter the sum of its gradients so far, None where gradients are not accumulated.
        state: of the optimizer.
        rates: its learning rates.
        inputs: of the loss: ``kl_weight``.
        counted: number of finite compiled steps.
        failed: number of steps since the first that was not finite.
    """

    parameters: Sequence[Tensor]
    sums: Sequence[Tensor | None]
    state: Sequence[Tensor]
    rates: Sequence[Tensor]
    inputs: Sequence[Tensor]
    counted: Tensor
    failed: Tensor

    def flat(self) -> list[Tensor]:
        """One list of them, the parameters first."""
        sums = [one for one in self.sums if one is not None]
        return [*self.parameters, *sums, *self.state, *self.rates, *self.inputs, self.counted, self.failed]


def recordable_step(
    read: StepInputs,
    loss: LossProgram,
    optimizer: StepOptimizer,
    args: tuple,
    kwargs: dict,
    accumulate: int,
    update: bool,
) -> Recordable:
    """The step of :class:`pyro_vd.CompiledSVI`, to be recorded.

    A step whose data term or learning rate is not finite, or that comes after one that is not, writes nothing. Where an
    element of a gradient is not finite, that element of its parameter and of the optimizer's state stays as it is. A
    parameter without a gradient has none for the optimizer either.

    Args:
        read: all tensors that the step is known to read.
        loss, optimizer: of what the step is made.
        args, kwargs: arguments of the model; their tensors are inputs of the function.
        accumulate: number of gradients that are averaged.
        update: whether this step updates the parameters.

    Returns:
        The function of ``read.flat()`` and the tensors among the arguments; its one output is the loss.

    Raises:
        UnrecordableOptimizer: when the function is run.
    """
    flat, number = read.flat(), len(read.parameters)
    counted, failed = len(flat) - 2, len(flat) - 1
    rates, counts, state = (_places(flat, tensors) for tensors in (read.rates, optimizer.counts(), read.state))
    sums = [None if one is None else _places(flat, [one])[0] for one in read.sums]
    owner = {place: i for i, own in enumerate(optimizer.owners(read.parameters)) for place in _places(flat, own)}
    owner |= {place: i for i, place in enumerate(sums) if place is not None}
    written = {*(place for place in sums if place is not None), *((*range(number), *state) if update else ())}

    def function(recorded: list[Tensor], inputs: list[Tensor], substitute: Substitute) -> list[Tensor]:
        # On copies: what a copy has become is written back at the end, where the step is finite.
        copies = [tensor.detach().clone() for tensor in recorded]
        for i in rates:
            copies[i].requires_grad_()  # for optimizers that would read the number in it otherwise
        for i in counts:
            copies[i] = copies[i].double()  # bias corrections in the precision of Python numbers
        loss_value, data_term, gradients = loss.gradients(copies, number, substitute, args, kwargs, inputs)
        known = [gradient for gradient in gradients if gradient is not None]
        good = all_finite([data_term, *(copies[i].detach() for i in rates)]) & (recorded[failed] == 0)
        if inputs:  # which may hold infinity where it does no harm, such as the mask of an attention
            good = good & (all_finite([data_term, *inputs]) | all_finite([data_term, *known]))
        with torch.no_grad():
            totals: list[Tensor | None] = list(gradients)
            if accumulate > 1:
                totals = [_added(copies, i, g, accumulate, update) for i, g in zip(sums, gradients, strict=True)]
            if update:
                for copy, total in zip(copies, totals, strict=False):
                    copy.grad = total
                _update(optimizer, read.parameters, substitute, copies)
            finite = [good if g is None else good & torch.isfinite(g) for g in gradients]
            for i, (tensor, copy) in enumerate(zip(recorded, copies, strict=True)):
                if i in written or (i not in (*rates, counted, failed) and was_written(copy)):
                    mask = finite[owner[i]] if i in owner else good
                    tensor.copy_(torch.where(mask, copy.to(tensor.dtype), tensor))
            is_finite = good & all_finite([loss_value, *known])
            recorded[counted].add_(is_finite.to(torch.int32))
            recorded[failed].add_((~is_finite).to(torch.int32))
        return [loss_value]

    return function


def _added(
    copies: list[Tensor], place: int | None, gradient: Tensor | None, accumulate: int, update: bool
) -> Tensor | None:
    """The gradient with the sum of those before it; the sum goes on, or starts again."""
    if place is None:
        if gradient is not None:
            raise ValueError("a parameter has its first gradient after the first update of the parameters")
        return None
    total = copies[place] if gradient is None else copies[place] + gradient / accumulate
    copies[place] = torch.zeros_like(total) if update else total
    return total


def _update(
    optimizer: StepOptimizer, parameters: Sequence[Tensor], substitute: Substitute, copies: list[Tensor]
) -> None:
    try:
        with substitute(copies), optimizers_keep_tensors(), optimizer.recorded(), _NoNumbers():
            optimizer.update(parameters)
    except Exception as error:
        names = ", ".join(sorted({type(one).__name__ for one in optimizer.optimizers}))
        raise UnrecordableOptimizer(
            f"optim: expected an optimizer whose step is arithmetic on tensors, got {names}, which cannot be recorded "
            f"({error}); use torch.optim.Adam, AdamW or SGD, or step with pyro.infer.SVI"
        ) from error


class _NoNumbers(TorchFunctionMode):
    """Raises where a number is read out of a tensor: a program would hold it as a constant."""

    _READERS = {Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__, Tensor.__bool__}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._READERS:
            raise ValueError(f"{full_name(func)} reads the number in a tensor")
        return func(*args, **kwargs or {})


def recordable_loss(
    loss: LossProgram, parameters: Sequence[Tensor], args: tuple, kwargs: dict, used: list[Tensor]
) -> Recordable:
    """A loss and its gradients, to be recorded; puts the parameters that have one in ``used``."""

    def function(recorded: list[Tensor], inputs: list[Tensor], substitute: Substitute) -> list[Tensor]:
        copies = [tensor.detach().clone() for tensor in recorded]
        value, data_term, gradients = loss.gradients(copies, len(parameters), substitute, args, kwargs, inputs)
        good = all_finite([data_term])
        with torch.no_grad():
            for tensor, copy in zip(recorded, copies, strict=True):
                if was_written(copy):  # a buffer such as those of BatchNorm
                    tensor.copy_(torch.where(good, copy, tensor))
        used[:] = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        return [value, *(gradient for gradient in gradients if gradient is not None)]

    return function


def _places(tensors: Sequence[Tensor], some: Sequence[Tensor]) -> list[int]:
    """Where ``some`` are among ``tensors``."""
    place = {tensor: i for i, tensor in enumerate(tensors)}
    return [place[tensor] for tensor in some if tensor in place]
