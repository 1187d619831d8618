"""A step of CompiledSVI by a compiled program: found, made, compared with the eager step, run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vd._pyro import handlers_are_active
from pyro_vd.compiled.agreement import agree
from pyro_vd.compiled.ahead import Elsewhere
from pyro_vd.compiled.comparison import record_step, tried
from pyro_vd.compiled.eager import EagerStep
from pyro_vd.compiled.loss_program import signature
from pyro_vd.compiled.optimizers import UnrecordableOptimizer
from pyro_vd.compiled.progress import progress
from pyro_vd.compiled.reasons import reason_of
from pyro_vd.compiled.surroundings import Surroundings
from pyro_vd.compiled.transaction import Backup, all_or_nothing

if TYPE_CHECKING:
    from pyro_vd.compiled.inductor import CompiledProgram

CHECK_EVERY = 100  # steps between looks at the flag of a step that was not finite, where a look waits for the device


class CompiledStep:
    """Takes steps by programs, and compiles those that are missing.

    Args:
        eager: the step that programs are made of, and compared with.
        backup: returns a backup of all that a step may change.
        warm: let another process compile, and take eager steps until it has.

    Attributes:
        done: number of compiled steps; that of the programs is ``counted``, a tensor.
        counted, failed: counted by the programs: finite steps, and steps since the first that was not finite.
    """

    def __init__(self, eager: EagerStep, backup: Callable[[], Backup], warm: bool):
        self._eager, self._programs = eager, eager.programs
        self._optimizer, self._parameters = eager.optimizer, eager.parameters
        self._backup = backup
        self._elsewhere = Elsewhere() if warm else None
        self._known: Surroundings | None = None  # those in which the parameters were last checked
        self.done = 0
        self.counted: Tensor | None = None
        self.failed: Tensor | None = None

    @property
    def is_started(self) -> bool:
        """Whether steps may be compiled."""
        return self.counted is not None

    def start(self, device: torch.device) -> None:
        """From here on steps may be compiled: parameters and the state of the optimizer are there."""
        self.done = 0
        self.counted, self.failed = (torch.zeros((), dtype=torch.int32, device=device) for _ in range(2))
        self._optimizer.move_counts(device)
        self._programs.look_again()

    def stop(self) -> None:
        """Undo :meth:`start`."""
        self.counted = self.failed = None

    def is_complete(self, done: int) -> bool:
        """Whether a program has taken a step since :attr:`done` was ``done``, whose caller was interrupted."""
        if self.counted is None or int(self.counted) <= done:
            return False
        self.done = int(self.counted)
        return True

    def __call__(self, args: tuple, kwargs: dict, update: bool, step: int) -> Tensor | None:
        """Take step number ``step``, from 1; None, and no step, where it is to be an eager one."""
        programs = self._programs
        surroundings = programs.surroundings()
        if surroundings is not self._known:
            if self._parameters.check_change(surroundings):
                return None
            if self._optimizer.has_hooks():
                programs.give_up("the optimizer has hooks on its steps, which no compiled step would call")
                return None
            self._optimizer.note_step()
            self._known = surroundings
        if not self._parameters.tensors:
            programs.give_up("model and guide have no parameter to train")
            return None
        if self._parameters.have_hooks():
            programs.give_up("a parameter has hooks on its gradient (register_hook), which no compiled step would call")
            return None
        if handlers_are_active():
            programs.give_up("the step runs under effect handlers of the caller")
            return None
        try:
            tensors, described = signature(args, kwargs)
        except TypeError as error:
            programs.give_up(f"an argument is neither a tensor nor hashable: {error}")
            return None
        key = update, described
        rates, inputs = self._refresh_inputs()
        program = programs.find(key, surroundings)
        if program is None:
            return self._first(key, rates, inputs, tensors, args, kwargs, update, step)
        if (step - 1) & (step - 2) == 0:
            return self._compared(program, tensors, args, kwargs, step)
        return self._run(program, tensors, args, kwargs, step)

    def _refresh_inputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Learning rates and ``kl_weight``, where every program reads them, with the values they have now."""
        return self._optimizer.rates(), self._eager.loss.inputs(self._parameters.tensors[0])

    def _run(self, program: CompiledProgram, tensors: list[Tensor], args: tuple, kwargs: dict, step: int) -> Tensor:
        """A step by a program that is known to be right. What it changes, it changes in one call."""
        noise = torch.get_rng_state()
        try:
            (loss,) = program(tensors)
        except BaseException:
            if int(self.counted) == self.done:  # type: ignore[arg-type]
                torch.set_rng_state(noise)  # random numbers are drawn before the program, not by it
            raise
        if self._is_finite(loss, step):
            self.done += 1
            return loss
        torch.set_rng_state(noise)
        raise self._not_finite(loss, args, kwargs, step)

    def _compared(self, program: CompiledProgram, tensors: list[Tensor], args: tuple, kwargs: dict, step: int) -> Any:
        """A compiled step; None, and no step, where its loss is not the eager one with the same noise."""
        with all_or_nothing(self._backup()) as backup:
            with torch.no_grad():
                expected = self._eager.loss.unchecked(args, kwargs)
            backup.restore_values()
            loss = self._run(program, tensors, args, kwargs, step)
            if agree(loss, expected):
                return loss
            backup.restore()
            self._programs.give_up(
                f"the compiled loss is {loss:.6g}, the eager one {expected:.6g} with the same noise; the model reads "
                "something that has changed, or draws random numbers from elsewhere than PyTorch"
            )
            return None

    def _first(
        self,
        key: Hashable,
        rates: list[Tensor],
        inputs: list[Tensor],
        tensors: list[Tensor],
        args: tuple,
        kwargs: dict,
        update: bool,
        step: int,
    ) -> Tensor | None:
        """Compile a program and take its step, and an eager one beside it; keep the program if both agree."""
        elsewhere = self._elsewhere
        if (elsewhere is not None and elsewhere.is_busy()) or not self._programs.may_compile():
            return None
        eager, trained = self._eager, self._parameters.tensors
        with all_or_nothing(self._backup()) as backup:
            sums = [parameter.grad if eager.accumulate > 1 else None for parameter in trained]
            known = (trained, sums, self._optimizer.state(), rates, inputs, self.counted, self.failed)
            what = (eager.loss, self._optimizer, args, kwargs, eager.accumulate, update)
            try:
                with progress(f"the step of {sum(parameter.numel() for parameter in trained):,} parameters"):
                    recording = record_step(known, tensors, *what, for_elsewhere=elsewhere is not None)
                    backup.surroundings.restore()  # recording has run the model, on tensors without values
                    if elsewhere is not None and elsewhere.begin((backup.surroundings.key, key), recording):
                        backup.restore()
                        return None
                    program = recording.compile()
                trial = tried(program, tensors)
            except UnrecordableOptimizer as error:
                backup.restore()
                raise ValueError(str(error)) from error.__cause__
            except Exception as error:  # a model that cannot be recorded, or a machine without a compiler
                backup.restore()
                self._programs.give_up(reason_of(error))
                return None
            loss, gradients = eager(args, kwargs, update, step)
            if not trial.agrees(loss, gradients, trained, self._optimizer):
                backup.restore_values()
                self._programs.give_up("the compiled step is not the eager one with the same noise")
                return None
            trial.commit()
            if loss.is_cuda:
                program.capture(tensors)
            self._programs.add(key, program, program.tensors, backup.surroundings)
            self.done += 1
            return trial.outputs[0]

    def _is_finite(self, loss: Tensor, step: int) -> bool:
        """Whether all steps were finite; on a GPU this is checked now and then, since it waits for the device."""
        assert self.failed is not None
        return (loss.is_cuda and (step - 1) % CHECK_EVERY != 0) or not int(self.failed)

    def _not_finite(self, loss: Tensor, args: tuple, kwargs: dict, step: int) -> Exception:
        """The error for a loss, now or some steps ago, that was not finite."""
        assert self.failed is not None and self.counted is not None
        failed = int(self.failed)
        self.failed.zero_()
        self.done = int(self.counted)
        with all_or_nothing(self._backup()) as backup:
            self._eager.loss(args, kwargs)  # names what is at fault, if it is so in this step
            backup.restore_values()
        return ValueError(
            f"step {step + 1 - failed}: expected a finite loss and gradient, got one that is not (a loss of "
            f"{float(loss)} in step {step}); the parameters are those before it. Is a learning rate too high?"
        )
