"""compile_loss: the loss and its gradient as one compiled program, for those who own their training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_vd._pyro import handlers_are_active
from pyro_vd.common.options import check_flag
from pyro_vd.compiled.agreement import GRADIENTS, agree, same_noise
from pyro_vd.compiled.cache import Programs
from pyro_vd.compiled.inductor import CompiledProgram, compile_program
from pyro_vd.compiled.loss_program import Evaluation, all_finite
from pyro_vd.compiled.recording import Program, Standing
from pyro_vd.loss_module import LossModule, TrainedModule


def compile_loss(loss: LossModule, *, strict: bool = False) -> CompiledLoss:
    """A compiled, differentiable loss, for DistributedDataParallel, Lightning or any loop of one's own.

    Its call gives the loss, and ``backward`` the gradient, as those of ``loss`` with the same random numbers. Both come
    from one program, compiled for each shape and mode of the arguments as in :class:`pyro_vd.CompiledSVI`, and
    compared with the eager ones before it is used. CompiledSVI, which has the optimizer in the program too, is faster.

    Args:
        loss: what ``TraceVD_ELBO(...)(model, guide)`` returns. Its first call is eager.
        strict: raise, instead of a warning and the eager loss, where it cannot be compiled.

    Returns:
        A module with the parameters of ``loss``. A loss that is not finite raises on a CPU, and is returned as it is on
        a GPU.

    Raises:
        TypeError: another kind of loss.

    Example:
        >>> import pyro, pyro_vd as vd
        >>> from pyro_vd.guides import AutoSparseVD
        >>> bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())
        >>> def model(x):
        ...     logits = bnn(x)
        ...     with vd.data_plate(len(x), len(x)):
        ...         return pyro.sample("y", pyro.distributions.Categorical(logits=logits), obs=torch.zeros(len(x)))
        >>> guide = AutoSparseVD(model)
        >>> _ = guide(torch.ones(5, 3))
        >>> loss = compile_loss(vd.TraceVD_ELBO()(model, guide))
        >>> loss(torch.ones(5, 3)).shape
        torch.Size([])
    """
    if not isinstance(loss, LossModule):
        raise TypeError(
            f"loss: expected the module that TraceVD_ELBO()(model, guide) returns, got {type(loss).__name__}"
        )
    return CompiledLoss(loss, check_flag("strict", strict))


class CompiledLoss(TrainedModule):
    """What :func:`compile_loss` returns."""

    def __init__(self, loss: LossModule, strict: bool):
        super().__init__()
        self.loss = loss
        self._evaluation = Evaluation(*loss.callables, loss.elbo)
        self._programs = Programs(self._evaluation, ("a loss", "use the loss as it is"), strict, depth=6)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self.loss.seen:  # a guide sees its model, and may have new parameters after it
            return self.loss(*args, **kwargs)
        if self._programs.ended or not torch.is_grad_enabled() or handlers_are_active():
            return self.loss(*args, **kwargs)
        held = [(tensor.dtype, tensor.device, tensor.data_ptr()) for tensor in self._evaluation.held()]
        found = self._programs.key(args, kwargs, *held)
        if found is None:
            return self.loss(*args, **kwargs)
        tensors, key = found
        if key not in self._programs:
            return self._first_call(key, tensors, args, kwargs)
        program, used = self._programs[key]
        self._evaluation.inputs(used[0])
        loss = _Loss.apply(program, tensors, *used)
        if not loss.is_cuda and not math.isfinite(loss.detach()):
            self.loss(*args, **kwargs)  # names what is at fault
        return loss

    def _first_call(self, key: Any, tensors: list[Tensor], args: tuple, kwargs: dict) -> Tensor:
        """Compile a program, run it on copies, and return the eager loss; keep the program if both agree."""
        parameters = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        used: list[Tensor] = []
        read = [*parameters, *self._evaluation.inputs(parameters[0])]
        try:
            program = compile_program(self._program(args, kwargs, parameters, used), read, tensors)
            with same_noise([*parameters, *tensors]):
                loss, *gradients = program.on([tensor.detach().clone() for tensor in program.tensors], tensors)
        except Exception as error:  # a model that cannot be recorded, or a machine without a compiler
            self._programs.give_up(f"{type(error).__name__}: {error}")
            return self.loss(*args, **kwargs)
        eager = self.loss(*args, **kwargs)
        expected = torch.autograd.grad(eager, used, retain_graph=True)
        if not agree(loss, eager.detach()) or not all(map(agree, gradients, expected, [GRADIENTS] * len(used))):
            self._programs.give_up("the compiled loss or gradient is not the eager one with the same noise")
        else:
            self._programs[key] = program, used
        return eager

    def _program(self, args: tuple, kwargs: dict, parameters: Sequence[Tensor], used: list[Tensor]) -> Program:
        """Loss and gradients; puts the parameters that they depend on in ``used``."""

        def program(recorded: list[Tensor], inputs: list[Tensor], standing: Standing) -> list[Tensor]:
            copies = [tensor.detach().clone() for tensor in recorded]
            loss, data_term, gradients = self._evaluation.gradients(
                copies, len(parameters), standing, args, kwargs, inputs
            )
            good = all_finite([data_term])
            with torch.no_grad():
                for tensor, copy in zip(recorded, copies, strict=True):
                    if copy._version > 0:  # a buffer such as those of BatchNorm
                        tensor.copy_(torch.where(good, copy, tensor))
            used[:] = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
            return [loss, *(gradient for gradient in gradients if gradient is not None)]

        return program


class _Loss(torch.autograd.Function):
    """The loss of a program, with the gradients that came with it."""

    @staticmethod
    def forward(ctx: Any, program: CompiledProgram, tensors: list[Tensor], *used: Tensor) -> Tensor:
        loss, *gradients = program(tensors)
        if not loss.is_cuda and not bool(all_finite([loss, *tensors])) and not bool(all_finite([loss, *gradients])):
            raise ValueError(
                "expected a finite gradient, got one that is not: an argument of the loss holds NaN or infinity; look "
                "for it with torch.isfinite"
            )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return None, None, *(grad_output * gradient for gradient in ctx.saved_tensors)
