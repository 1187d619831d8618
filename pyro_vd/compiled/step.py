"""A step as a program of tensors: loss, gradients, optimizer, and what is kept where a step is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vd.compiled.loss_program import Evaluation, all_finite
from pyro_vd.compiled.optimizers import StepOptimizer
from pyro_vd.compiled.recording import Program, Standing


class UnrecordableOptimizer(Exception):
    """An optimizer whose step cannot be part of a program."""


def step_program(
    evaluation: Evaluation,
    optimizer: StepOptimizer,
    parameters: Sequence[Tensor],
    read: Sequence[Tensor],
    args: tuple,
    kwargs: dict,
    accumulate: int,
    update: bool,
) -> Program:
    """The step of :class:`pyro_vd.CompiledSVI`, to be recorded.

    A step whose data term or learning rate is not finite, or that comes after one that is not, writes nothing. Where an
    element of a gradient is not finite, that element of its parameter and of the optimizer's state stays as it is.

    Args:
        evaluation, optimizer: of what the step is made.
        parameters: what is trained.
        read: all tensors that the program is known to read: first ``parameters``, then the sums of their gradients if
            ``accumulate > 1``; last the number of steps since the first that was not finite.
        args, kwargs: arguments of the model; their tensors are inputs of the program.
        accumulate: number of gradients that are averaged.
        update: whether this step updates the parameters.

    Returns:
        The program; its one output is the loss.

    Raises:
        UnrecordableOptimizer: when the program is run.
    """
    last, number = len(read) - 1, len(parameters)
    rates, counts = (_places(read, tensors) for tensors in (optimizer.rates(), optimizer.counts()))
    owner = {place: i for i, own in enumerate(optimizer.owners(parameters)) for place in _places(read, own)}

    def program(recorded: list[Tensor], inputs: list[Tensor], standing: Standing) -> list[Tensor]:
        # On copies: what a copy has become is written back at the end, where the step is finite.
        copies = [tensor.detach().clone() for tensor in recorded]
        for i in rates:
            copies[i].requires_grad_()  # for optimizers that would read the number in it otherwise
        for i in counts:
            copies[i] = copies[i].double()  # bias corrections in the precision of Python numbers
        loss, data_term, maybe = evaluation.gradients(copies, number, standing, args, kwargs, inputs)
        gradients = [torch.zeros_like(c) if g is None else g for c, g in zip(copies, maybe, strict=False)]
        good = all_finite([data_term, *(copies[i].detach() for i in rates)]) & (recorded[last] == 0)
        if inputs:  # which may hold infinity where it does no harm, such as the mask of an attention
            good = good & (all_finite([data_term, *inputs]) | all_finite(gradients))
        with torch.no_grad():
            totals = _accumulated(copies, gradients, accumulate, update)
            if update:
                for copy, total in zip(copies, totals, strict=False):
                    copy.grad = total
                _update(optimizer, parameters, standing, copies)
            finite = [good & torch.isfinite(gradient) for gradient in gradients]
            for i, (tensor, copy) in enumerate(zip(recorded, copies, strict=True)):
                if (i < last and i not in rates) or copy._version > 0:
                    mask = finite[owner[i]] if i in owner else good
                    tensor.copy_(torch.where(mask, copy.to(tensor.dtype), tensor))
            recorded[last].add_((~(good & all_finite([loss, *gradients]))).to(torch.int32))
        return [loss]

    return program


def _accumulated(copies: list[Tensor], gradients: list[Tensor], accumulate: int, update: bool) -> list[Tensor]:
    """The gradients with the sums of those before them; the sums go on, or start again."""
    if accumulate == 1:
        return gradients
    sums = copies[len(gradients) : 2 * len(gradients)]
    totals = [total + gradient / accumulate for total, gradient in zip(sums, gradients, strict=True)]
    for sum_, total in zip(sums, totals, strict=True):
        sum_.copy_(torch.zeros_like(total) if update else total)
    return totals


def _update(optimizer: StepOptimizer, parameters: Sequence[Tensor], standing: Standing, copies: list[Tensor]) -> None:
    try:
        with standing(copies), optimizer.recorded():
            optimizer.update(parameters)
    except Exception as error:
        names = ", ".join(sorted({type(one).__name__ for one in optimizer.optimizers}))
        raise UnrecordableOptimizer(
            f"optim: expected an optimizer whose step is arithmetic on tensors, got {names}, which cannot be recorded "
            f"({error}); use torch.optim.Adam, AdamW or SGD, or step with pyro.infer.SVI"
        ) from error


def _places(tensors: Sequence[Tensor], some: Sequence[Tensor]) -> list[int]:
    """Where ``some`` are among ``tensors``."""
    return [i for i, tensor in enumerate(tensors) if any(tensor is other for other in some)]
