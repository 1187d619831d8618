"""A step of CompiledSVI as ``pyro.infer.SVI`` takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vd.compiled.cache import ProgramCache
from pyro_vd.compiled.loss_program import LossProgram, all_finite
from pyro_vd.compiled.optimizers import StepOptimizer
from pyro_vd.compiled.trained import TrainedParameters


@dataclass(frozen=True)
class EagerStep:
    """Evaluates the loss, its gradient and the optimizer, one after the other.

    Args:
        loss, optimizer, parameters: of what the step is made.
        programs: know what surrounds the loss.
        accumulate: number of gradients that are averaged.
    """

    loss: LossProgram
    optimizer: StepOptimizer
    parameters: TrainedParameters
    programs: ProgramCache
    accumulate: int

    def __call__(self, args: tuple, kwargs: dict, update: bool, step: int) -> tuple[Tensor, list[Tensor | None]]:
        """Take a step; returns the loss and the gradients to all parameters.

        Raises:
            ValueError: other parameters than in the first step; a loss, gradient or learning rate that is not finite.
        """
        loss, met = self.loss.with_parameters(args, kwargs)
        if not self.parameters.met:
            self.meet(met)
        self.parameters.check(met)
        self.parameters.have_hooks()  # raises for those that this step would not call
        parameters = self.parameters.tensors
        gradients: list[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad and parameters:
            gradients = self._gradients(loss, parameters, step)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if self.accumulate == 1:
                parameter.grad = gradient
            elif gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        if update:
            self.optimizer.update(parameters)
            self.optimizer.rates()  # raises where one is not finite
            for parameter in parameters:
                if self.accumulate == 1:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.zero_()  # the same tensor, which programs write to
        return loss.detach(), gradients

    def meet(self, met: dict[str, Tensor]) -> None:
        """Take in the parameters that a first evaluation of the loss has met."""
        optimizer = self.optimizer
        is_fixed = optimizer.is_made and not optimizer.is_pyro
        self.parameters.complete(met, self.programs.surroundings(), optimizer.is_pyro, is_fixed)

    def _gradients(self, loss: Tensor, parameters: list[Tensor], step: int) -> list[Tensor | None]:
        gradients = torch.autograd.grad(loss / self.accumulate, parameters, allow_unused=True)
        known = [gradient for gradient in gradients if gradient is not None]
        if not bool(all_finite([loss.detach(), *known])):
            raise ValueError(
                f"step {step}: expected a finite gradient, got one that is not, of a loss of {loss.detach():.6g}; the "
                "parameters are those before it"
            )
        return list(gradients)
