"""CompiledSVI: a step of stochastic variational inference as one compiled program.

Model, guide, loss, gradient and optimizer run once under Pyro's handlers while ``recording.py`` notes what they do to
tensors. That graph is compiled, and is all that later steps run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_vd._pyro import handlers_are_active
from pyro_vd.common.options import check_count, check_flag
from pyro_vd.compiled.agreement import agree, moved_alike, only_rounding, same_noise
from pyro_vd.compiled.cache import Programs
from pyro_vd.compiled.inductor import CompiledProgram, compile_program
from pyro_vd.compiled.loss_program import Evaluation, all_finite
from pyro_vd.compiled.optimizers import StepOptimizer
from pyro_vd.compiled.recording import Program
from pyro_vd.compiled.step import UnrecordableOptimizer, step_program
from pyro_vd.compiled.trained import TrainedParameters

CHECK_EVERY = 100  # steps between looks at the flag of a step that was not finite, where a look waits for the device


class CompiledSVI:
    """``pyro.infer.SVI`` with a compiled step.

    The first step runs as ``SVI`` runs it, and makes the state of the optimizer. The second does too, and is compiled
    beside it: the compiled program is used from the third on if both agree on the same noise. The program is cached
    for each shape, dtype and device of the arguments, training mode and plain attribute of the modules; a smaller
    last batch is compiled once more. ``kl_weight`` and learning rates are inputs of it and may change in every step.
    It has the random numbers of the eager step.

    A step whose data term is not finite changes nothing; where only an element of the gradient is not, that element of
    its parameter stays. No step after it changes anything until the error is raised: in that step on a CPU, within 100
    steps on a GPU, where nothing waits for the device otherwise.

    Where the program cannot be recorded or compiled, or does not agree with the eager step, a warning says why and
    steps stay eager. It is compared with the eager loss again in steps 4, 8, 16, ..., since the values of Python
    numbers that the model reads from elsewhere are part of the program.

    Args:
        model, guide: Pyro model and guide.
        optim: a ``pyro.optim`` optimizer, or a callable from a list of parameters to a ``torch.optim.Optimizer``,
            such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        loss: an ELBO, such as :class:`pyro_vd.TraceVD_ELBO`.
        clip_norm: largest norm of the gradient of all parameters; for ``torch.optim`` only, ``pyro.optim`` has
            ``clip_args``.
        accumulate: average the gradients of that many steps before the parameters change.
        strict: raise, instead of a warning and eager steps, where there is no compiled program.

    Raises:
        TypeError: optim or loss of another kind.
        ValueError: an optimizer that cannot be recorded; parameters that are not those of the first step; a loss or
            gradient that is not finite; with ``strict``, no compiled program.

    Example:
        >>> import functools, pyro, pyro_vd as vd
        >>> from pyro_vd.guides import AutoSparseVD
        >>> bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())
        >>> def model(x, y=None):
        ...     logits = bnn(x)
        ...     with vd.data_plate(len(x), len(x)):
        ...         return pyro.sample("y", pyro.distributions.Categorical(logits=logits), obs=y)
        >>> adam = functools.partial(torch.optim.Adam, lr=1e-3)
        >>> svi = CompiledSVI(model, AutoSparseVD(model), adam, vd.TraceVD_ELBO())
        >>> svi.step(torch.ones(5, 3), torch.zeros(5)).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: PyroOptim | Callable[[list[Tensor]], Optimizer],
        loss: ELBO,
        *,
        clip_norm: float | None = None,
        accumulate: int = 1,
        strict: bool = False,
    ):
        accumulate = check_count("accumulate", accumulate, 1)
        check_flag("strict", strict)
        self.model, self.guide, self.optim, self.loss = model, guide, optim, loss
        self.accumulate = accumulate
        self._evaluation = Evaluation(model, guide, loss)
        self._programs = Programs(self._evaluation, ("a step", "step with pyro.infer.SVI"), strict, depth=5)
        self._optimizer = StepOptimizer(optim, clip_norm)
        self._parameters = TrainedParameters(self._evaluation, self._optimizer)
        self._failed: Tensor | None = None  # how many steps in a row were not finite; made by the first update
        self._steps = 0

    @property
    def optimizer(self) -> Optimizer:
        """What ``optim`` returned, for a scheduler of its learning rate; from the first step on."""
        if isinstance(self.optim, PyroOptim) or not self._optimizer.optimizers:
            raise AttributeError(
                "optimizer: expected a callable optim that has been called, by the first update of the parameters"
            )
        return self._optimizer.optimizers[0]

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take a step; returns the loss it was taken from, 0-dim, nats, without waiting for the device."""
        update = (self._steps + 1) % self.accumulate == 0
        if self._failed is None or self._programs.ended:
            loss = self._eager_step(args, kwargs, update)
        else:
            loss = self._compiled_step(args, kwargs, update)
        self._steps += 1
        return loss

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, 0-dim, nats; nothing is changed."""
        return self._evaluation.unchecked(args, kwargs)

    def _eager_step(self, args: tuple, kwargs: dict, update: bool, gradients: list | None = None) -> Tensor:
        """A step as ``SVI`` takes it; its gradients are put in ``gradients``."""
        loss, met = self._evaluation.with_parameters(args, kwargs)
        self._parameters.check(met)
        parameters = list(self._parameters.values())
        if loss.requires_grad:
            new = self._add_gradients(loss, parameters)
            if gradients is not None:
                gradients += new
        if update:
            try:
                self._optimizer.update(parameters)
            except Exception:
                for parameter in parameters:
                    parameter.grad = None  # nothing of this step stays for another optimizer
                raise
            for parameter in parameters:
                if self.accumulate == 1:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.zero_()  # the same tensor, which programs write to
            if self._failed is None:
                self._failed = torch.zeros((), dtype=torch.int32, device=loss.device)
                self._optimizer.move_counts(loss.device)
                self._parameters.remember()
        return loss.detach()

    def _add_gradients(self, loss: Tensor, parameters: list[Tensor]) -> Sequence[Tensor | None]:
        gradients = torch.autograd.grad(loss / self.accumulate, parameters, allow_unused=True)
        known = [gradient for gradient in gradients if gradient is not None]
        if not bool(all_finite([loss.detach(), *known])):
            raise ValueError(
                f"step {self._steps + 1}: expected a finite gradient, got one that is not, of a loss of "
                f"{loss.detach():.6g}; the parameters are those before it"
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return gradients

    def _compiled_step(self, args: tuple, kwargs: dict, update: bool) -> Tensor:
        changed, loaded = self._parameters.changes()
        if changed:
            self._programs.clear()
        if loaded:
            return self._eager_step(args, kwargs, update)
        if handlers_are_active():
            self._programs.give_up("the step runs under effect handlers of the caller")
            return self._eager_step(args, kwargs, update)
        found = self._programs.key(args, kwargs, update, self._optimizer.constants())
        if found is None:
            return self._eager_step(args, kwargs, update)
        tensors, key = found
        if key not in self._programs:
            return self._first_step(key, tensors, args, kwargs, update)
        program = self._programs[key]
        self._read()  # puts kl_weight and learning rates where the program reads them
        if self._steps & (self._steps - 1):
            (loss,) = program(tensors)
        elif (loss := self._compared_step(program, tensors, args, kwargs)) is None:
            return self._eager_step(args, kwargs, update)
        self._check_finite(loss, args, kwargs)
        return loss

    def _compared_step(self, program: CompiledProgram, tensors: list[Tensor], args: tuple, kwargs: dict) -> Any:
        """A compiled step; None, and no step, where its loss is not the eager one with the same noise."""
        expected = self._expected_loss(args, kwargs)
        before = [tensor.detach().clone() for tensor in program.tensors]
        noise = torch.get_rng_state()
        (loss,) = program(tensors)
        if not math.isfinite(loss) or agree(loss, expected):
            return loss
        _restore(program.tensors, before)
        torch.set_rng_state(noise)
        self._programs.give_up(
            f"the compiled loss is {loss:.6g}, the eager one {expected:.6g} with the same noise; the model reads a "
            "Python number that has changed, or draws random numbers from elsewhere than PyTorch"
        )
        return None

    def _first_step(self, key: Any, tensors: list[Tensor], args: tuple, kwargs: dict, update: bool) -> Tensor:
        """Compile a program, run it on copies, and take the step eagerly; keep the program if both agree."""
        try:
            program = compile_program(self._program(args, kwargs, update), self._read(), tensors)
            before = [tensor.detach().clone() for tensor in program.tensors]
            copies = [tensor.clone() for tensor in before]
            with same_noise(tensors):
                (loss,) = program.on(copies, tensors)
        except UnrecordableOptimizer as error:
            raise ValueError(str(error)) from error.__cause__
        except Exception as error:  # a model that cannot be recorded, or a machine without a compiler
            self._programs.give_up(f"{type(error).__name__}: {error}")
            return self._eager_step(args, kwargs, update)
        gradients: list[Tensor | None] = []
        eager = self._eager_step(args, kwargs, update, gradients)
        left_out = self._moved_by_rounding(gradients)
        same = agree(loss, eager) and all(
            moved_alike(old, copy, after.detach(), next((mask for other, mask in left_out if other is after), None))
            for after, copy, old in zip(program.tensors, copies, before, strict=True)
        )
        if same:
            self._programs[key] = program
            if eager.is_cuda:
                program.capture(tensors)
        else:
            if self._programs.strict:
                _restore(program.tensors, before)
            self._programs.give_up("the compiled step is not the eager one with the same noise")
        return eager

    def _moved_by_rounding(self, gradients: list[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
        """What the gradients of a step change, with a mask of the elements for which they are only rounding."""
        parameters = list(self._parameters.values())
        owners = self._optimizer.owners(parameters)
        return [
            (tensor, mask)
            for parameter, own, mask in zip(parameters, owners, only_rounding(gradients), strict=False)
            for tensor in (*own, parameter.grad)
            if tensor is not None
        ]

    def _program(self, args: tuple, kwargs: dict, update: bool) -> Program:
        parameters = list(self._parameters.values())
        return step_program(
            self._evaluation, self._optimizer, parameters, self._read(), args, kwargs, self.accumulate, update
        )

    def _read(self) -> list[Tensor]:
        """What every program reads; the count of failures last."""
        parameters = list(self._parameters.values())
        sums = [p.grad for p in parameters if p.grad is not None] if self.accumulate > 1 else []
        inputs = self._evaluation.inputs(parameters[0])
        assert self._failed is not None
        return [*parameters, *sums, *self._optimizer.state(), *self._optimizer.rates(), *inputs, self._failed]

    @torch.no_grad()
    def _expected_loss(self, args: tuple, kwargs: dict) -> Tensor:
        """The eager loss with the noise that the program will have next; nothing is changed."""
        with same_noise((*self._parameters.values(),)), self._evaluation.buffers_kept():
            return self._evaluation.unchecked(args, kwargs)

    def _check_finite(self, loss: Tensor, args: tuple, kwargs: dict) -> None:
        if loss.is_cuda and self._steps % CHECK_EVERY:
            return
        assert self._failed is not None
        failed = int(self._failed)
        if not failed:
            return
        self._failed.zero_()
        with self._evaluation.buffers_kept():
            self._evaluation(args, kwargs)  # names what is at fault, if it is so in this step
        raise ValueError(
            f"step {self._steps + 2 - failed}: expected a finite loss and gradient, got one that is not (a loss of "
            f"{float(loss)} in step {self._steps + 1}); the parameters are those before it. Is a learning rate too "
            "high?"
        )


@torch.no_grad()
def _restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
