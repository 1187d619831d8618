"""compile_loss: the loss and its gradient as one compiled program, for those who own their training loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_vd._pyro import handlers_are_active
from pyro_vd.common.options import check_flag
from pyro_vd.compiled.agreement import agree, moved_alike, only_rounding
from pyro_vd.compiled.ahead import Elsewhere
from pyro_vd.compiled.cache import ProgramCache
from pyro_vd.compiled.comparison import tried
from pyro_vd.compiled.loss_program import LossProgram, all_finite, signature
from pyro_vd.compiled.progress import progress
from pyro_vd.compiled.reasons import reason_of
from pyro_vd.compiled.surroundings import Surroundings
from pyro_vd.compiled.transaction import Backup, all_or_nothing
from pyro_vd.loss_module import LossModule, TrainedModule

if TYPE_CHECKING:
    from pyro_vd.compiled.inductor import CompiledProgram, Recording


def compile_loss(loss: LossModule, *, strict: bool = False, warm: bool = False) -> CompiledLoss:
    """A compiled, differentiable loss, for DistributedDataParallel, Lightning or any loop of one's own.

    Its call gives the loss, and ``backward`` the gradient, as those of ``loss`` with the same random numbers. Both come
    from one program, compiled for each shape and mode of the arguments as in :class:`pyro_vd.CompiledSVI`, and
    compared with the eager ones before it is used. CompiledSVI is faster: its program has the optimizer, too. Under
    autocast to float16, where a ``GradScaler`` has to scale the loss, it is eager.

    Args:
        loss: what ``TraceVD_ELBO(...)(model, guide)`` returns. Its first call is eager.
        strict: raise, instead of a warning and the eager loss, where it cannot be compiled.
        warm: do not wait for the compiler: the loss is eager until another process has compiled it, as in
            :class:`pyro_vd.CompiledSVI`.

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

    See also:
        :class:`pyro_vd.CompiledSVI`, :class:`pyro_vd.TraceVD_ELBO`.
    """
    if not isinstance(loss, LossModule):
        raise TypeError(
            f"loss: expected the module that TraceVD_ELBO()(model, guide) returns, got {type(loss).__name__}"
        )
    return CompiledLoss(loss, check_flag("strict", strict), check_flag("warm", warm))


class CompiledLoss(TrainedModule):
    """What :func:`compile_loss` returns."""

    def __init__(self, loss: LossModule, strict: bool, warm: bool = False):
        super().__init__()
        self.loss = loss
        self._loss_program = LossProgram(*loss.callables, loss.elbo)
        self._programs = ProgramCache(self._loss_program.surroundings, "a loss", "use the loss as it is", strict)
        self._elsewhere = Elsewhere() if warm else None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self.loss.seen:  # a guide sees its model, and may have new parameters after it
            return self.loss(*args, **kwargs)
        self.loss.check_stepped()
        if self._programs.ended or not torch.is_grad_enabled() or handlers_are_active():
            return self.loss(*args, **kwargs)
        surroundings = self._programs.surroundings()
        try:
            tensors, key = signature(args, kwargs)
        except TypeError as error:
            self._programs.give_up(f"an argument is neither a tensor nor hashable: {error}")
            return self.loss(*args, **kwargs)
        found = self._programs.find(key, surroundings)
        if found is None:
            return self._first_call(key, surroundings, tensors, args, kwargs)
        program, used = found
        self._loss_program.inputs(used[0])  # kl_weight, where the program reads it
        loss = _Loss.apply(program, tensors, *used)
        if not loss.is_cuda and not math.isfinite(loss.detach()):
            self.loss(*args, **kwargs)  # names what is at fault
        return loss

    def _first_call(
        self, key: Any, surroundings: Surroundings, tensors: list[Tensor], args: tuple, kwargs: dict
    ) -> Tensor:
        """Compile a program, run it on copies, and return the eager loss; keep the program if both agree."""
        elsewhere = self._elsewhere
        if (elsewhere is not None and elsewhere.is_busy()) or not self._programs.may_compile():
            return self.loss(*args, **kwargs)
        if any(torch.is_autocast_enabled(k) and torch.get_autocast_dtype(k) == torch.float16 for k in ("cpu", "cuda")):
            self._programs.give_up(
                "it runs under autocast to float16, and a program has the gradient of the loss before a GradScaler "
                "scales it, in which float16 loses small values; write torch.bfloat16"
            )
            return self.loss(*args, **kwargs)
        parameters = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        used: list[Tensor] = []
        read = [*parameters, *self._loss_program.inputs(parameters[0])]
        try:
            with all_or_nothing(Backup(surroundings, (), [vars(self.loss.elbo)])) as backup:
                with progress(f"the loss of {sum(p.numel() for p in parameters):,} parameters"):
                    recording = self._record(read, tensors, args, kwargs, parameters, used)
                    backup.surroundings.restore()  # recording has run the model, on tensors without values
                    begun = elsewhere is not None and elsewhere.begin((backup.surroundings.key, key), recording)
                    program = None if begun else recording.compile()
                if program is None:
                    backup.restore()
                outputs = [] if program is None else tried(program, tensors).outputs
        except Exception as error:  # a model that cannot be recorded, or a machine without a compiler
            self._programs.give_up(reason_of(error))
            return self.loss(*args, **kwargs)
        eager = self.loss(*args, **kwargs)
        if program is None:
            return eager
        loss, *gradients = outputs
        expected = torch.autograd.grad(eager, used, retain_graph=True)
        nothing = [torch.zeros_like(gradient) for gradient in expected]
        alike = map(moved_alike, nothing, gradients, expected, only_rounding(expected))
        if not agree(loss, eager.detach()) or not all(alike):
            self._programs.give_up("the compiled loss or gradient is not the eager one with the same noise")
        else:
            self._programs.add(key, (program, used), program.tensors, surroundings)
        return eager

    def _record(
        self, read: list[Tensor], tensors: list[Tensor], args: tuple, kwargs: dict, parameters: list, used: list[Tensor]
    ) -> Recording:
        from pyro_vd.compiled.inductor import record_program
        from pyro_vd.compiled.step import recordable_loss

        function = recordable_loss(self._loss_program, parameters, args, kwargs, used)
        return record_program(function, read, tensors, for_elsewhere=self._elsewhere is not None)


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
