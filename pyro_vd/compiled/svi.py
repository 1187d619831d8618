"""CompiledSVI: a step of stochastic variational inference as one compiled program.

Model, guide, loss, gradient and optimizer run once under Pyro's handlers while ``recording.py`` notes what they do to
tensors. That graph is compiled, and is all that later steps run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vd.common.options import check_count, check_flag
from pyro_vd.compiled.cache import ProgramCache
from pyro_vd.compiled.compiled_step import CompiledStep
from pyro_vd.compiled.eager import EagerStep
from pyro_vd.compiled.loss_program import LossProgram
from pyro_vd.compiled.optimizers import StepOptimizer
from pyro_vd.compiled.saved import load_state, state_of
from pyro_vd.compiled.surroundings import Surroundings
from pyro_vd.compiled.trained import TrainedParameters
from pyro_vd.compiled.transaction import Backup, all_or_nothing


class CompiledSVI:
    """``pyro.infer.SVI`` with a compiled step.

    The first step runs as ``SVI`` runs it, and makes the state of the optimizer. The second is compiled, and taken
    eagerly beside it: where both agree on the same noise, its result is that of the program, as in all later steps.
    (An optimizer without a state, plain SGD, or one whose state was loaded, is compiled in the first step.) A program
    is compiled for each shape, dtype and device of the arguments, training mode, attribute of the modules, and plain
    Python value in closures, defaults and globals of model and guide; a smaller last batch is compiled once more.
    ``kl_weight`` and learning rates are inputs of it and may change in every step. It has the random numbers of the
    eager step.

    An exception or an interrupt leaves parameters, gradients, buffers, optimizer and random numbers as before the step.
    One that comes when all has been done already, within microseconds of the end, leaves a complete step; a note on the
    exception says so. A step whose data term is not finite changes nothing; where only an element of
    the gradient is not, that element of its parameter stays. No step after it changes anything until the error is
    raised: in that step on a CPU, within 100 steps on a GPU, where nothing waits for the device otherwise.

    Where the program cannot be recorded or compiled, or does not agree with the eager step, a warning says why and
    steps stay eager. It is compared with the eager loss again in steps 3, 5, 9, 17, ..., for what its key does not
    hold: what lies deeper than 40 references in objects of the user (a warning says so), or 6 in the code of an
    installed package, or is a list of more than 10,000. It holds ``os.environ``, where model or guide read that.

    Args:
        model, guide: Pyro model and guide.
        optim: a ``pyro.optim`` optimizer, or a callable from a list of parameters to a ``torch.optim.Optimizer``,
            such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        loss: an ELBO, such as :class:`pyro_vd.TraceVD_ELBO`.
        clip_norm: largest norm of the gradient of all parameters; for ``torch.optim`` only, ``pyro.optim`` has
            ``clip_args``.
        accumulate: average the gradients of that many steps before the parameters change.
        strict: raise, instead of a warning and eager steps, where there is no compiled program.
        warm: do not wait for the compiler. Another process compiles, with less priority, and leaves the program in
            Inductor's cache on disk; steps are eager until it is there. Which step is the first compiled one depends
            on the time, and with it the rounding of later steps, not their noise.

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

    See also:
        :func:`pyro_vd.compile_loss`, :func:`pyro_vd.training.save_checkpoint`, :class:`pyro_vd.TraceVD_ELBO`.
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
        warm: bool = False,
    ):
        accumulate = check_count("accumulate", accumulate, 1)
        check_flag("strict", strict)
        check_flag("warm", warm)
        self.model, self.guide, self.optim, self.loss = model, guide, optim, loss
        self.accumulate = accumulate
        self._loss = LossProgram(model, guide, loss)
        self._optimizer = StepOptimizer(optim, clip_norm)
        self._programs = ProgramCache(self._walk, "a step", "step with pyro.infer.SVI", strict)
        self._parameters = TrainedParameters()
        self._eager = EagerStep(self._loss, self._optimizer, self._parameters, self._programs, accumulate)
        self._compiled = CompiledStep(self._eager, self._backup, warm)
        self._steps = 0

    @property
    def optimizer(self) -> Optimizer:
        """What ``optim`` returned, for a scheduler of its learning rate; as soon as the guide has parameters.

        Raises:
            AttributeError: ``optim`` is of ``pyro.optim``; the guide has no parameters yet.
        """
        if isinstance(self.optim, PyroOptim):
            raise AttributeError(
                "optimizer: expected a callable optim, got one of pyro.optim, which has one "
                "for each parameter; write functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        if not self._optimizer.is_made:
            self._make_optimizer()
        return self._optimizer.optimizers[0]

    @property
    def loss_and_grads(self) -> Callable[..., float]:
        """As that of ``pyro.infer.SVI``: of model, guide and arguments, the loss; adds gradients to the parameters."""
        return self.loss.loss_and_grads  # type: ignore[attr-defined]

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take a step; returns the loss it was taken from, 0-dim, nats, without waiting for the device."""
        step, done = self._steps + 1, self._compiled.done
        update = step % self.accumulate == 0
        try:
            loss = self._compiled(args, kwargs, update, step) if self._is_ready(args, kwargs) else None
            if loss is None:
                return self._eager_step(args, kwargs, update)
            self._steps = step
            return loss
        except BaseException as error:
            if self._steps == step or self._compiled.is_complete(done):  # eager, or compiled
                self._steps = step
                error.add_note(f"pyro_vd: step {step} of CompiledSVI was complete when this came")
            raise

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, 0-dim, nats; nothing is changed but the random numbers."""
        with all_or_nothing(self._backup()) as backup:
            loss = self._loss.unchecked(args, kwargs)
            backup.restore_values(noise=False)
            return loss

    def state_dict(self) -> dict[str, Any]:
        """What a training needs to go on besides parameters and random numbers: optimizer, gradient sums, counts.

        A copy. Save the ``state_dict`` of guide and model, or Pyro's store, and ``torch.get_rng_state()`` with it: a
        training that loads them goes on bit for bit.

        Raises:
            ValueError: a ``pyro.optim`` optimizer with ``accumulate > 1``.
        """
        return state_of(self._optimizer, self._parameters, self._steps, self.accumulate, self._compiled.is_started)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, after the parameters.

        Raises:
            ValueError: a state of something else, of another optimizer, of other parameters or another ``accumulate``;
                it names what differs, and nothing is changed.
        """
        with all_or_nothing(self._backup()):
            started = load_state(
                state, self._optimizer, self._parameters, self._programs.surroundings(), self.accumulate
            )
            self._programs.clear()
            self._programs.look_again()
            self._steps = state["steps"]
            self._compiled.stop()
            if started:
                self._compiled.start(self._device())

    def __reduce__(self) -> Any:
        raise TypeError(
            "CompiledSVI: expected no copy and no pickle of one, whose programs belong to this process; save "
            "svi.state_dict() with the state of guide and net, and load it into a new CompiledSVI"
        )

    def _walk(self) -> Surroundings:
        options, read = self._optimizer.options()
        return self._loss.surroundings(options, self._optimizer.kept(), read)

    def _backup(self) -> Backup:
        """Of all that a step may change."""
        surroundings, optimizer, steps = self._programs.surroundings(), self._optimizer, self._compiled
        buffers = (b for module in surroundings.modules for b in module._buffers.values() if b is not None)
        counts = (count for count in (steps.counted, steps.failed) if count is not None)
        tensors = dict.fromkeys([*self._parameters.all_of(surroundings), *buffers, *optimizer.state(), *counts])
        owners = (self, steps, optimizer, self._parameters, self.loss)
        return Backup(surroundings, tensors, [*map(vars, owners), *optimizer.groups()])

    def _make_optimizer(self) -> None:
        guide = poutine.unwrap(self.guide)
        if not isinstance(guide, nn.Module) or not any(p.requires_grad for p in guide.parameters()):
            call = "call guide(*args) or take a step" if isinstance(guide, nn.Module) else "take a step"
            raise AttributeError(
                f"optimizer: expected a guide with parameters, got one that makes them when it is called; {call} before"
            )
        self._parameters.start(self._programs.surroundings())
        self._optimizer.make(self._parameters.tensors)
        self._programs.look_again()

    def _device(self) -> torch.device:
        """Where the parameters are, or will be."""
        parameters = self._parameters.all_of(self._programs.surroundings())
        return parameters[0].device if parameters else torch.device("cpu")

    def _is_ready(self, args: tuple, kwargs: dict) -> bool:
        """Whether a step can be compiled: not before the optimizer has a state, made by a first update or loaded."""
        if self._programs.ended:
            return False
        compiled, optimizer = self._compiled, self._optimizer
        if not compiled.is_started and optimizer.is_made and not optimizer.is_pyro and self.accumulate == 1:
            if optimizer.state():
                compiled.start(self._device())
        if compiled.is_started and not self._parameters.met:  # the state was loaded
            with all_or_nothing(self._backup()) as backup:
                with torch.no_grad():
                    _, met = self._loss.with_parameters(args, kwargs)
                self._eager.meet(met)
                optimizer.make(self._parameters.tensors)
                compiled.start(self._device())
                backup.restore_values()
        return compiled.is_started

    def _eager_step(self, args: tuple, kwargs: dict, update: bool) -> Tensor:
        step, compiled = self._steps + 1, self._compiled
        with all_or_nothing(self._backup()) as backup:
            is_first = update and not compiled.is_started and self.accumulate == 1
            before = self._loss.surroundings().key if is_first else ()
            loss, _ = self._eager(args, kwargs, update, step)
            if update and not compiled.is_started:
                compiled.start(loss.device)
                # The guide had seen its model already, and no parameter was made in this step.
                known = is_first and self._loss.surroundings().key == before
                known = known and backup.values.keys() >= set(self._parameters.tensors)
                if known and not (self._optimizer.state() or self._programs.ended):
                    backup.restore_values()  # plain SGD, without a state: this step can be compiled as those after it
                    taken = compiled(args, kwargs, update, step)
                    loss = self._eager(args, kwargs, update, step)[0] if taken is None else taken
            self._steps = step
            return loss
