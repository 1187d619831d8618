"""The optimizers of a compiled step: those of torch and Pyro themselves, run while the step is recorded."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vd._pyro import load_optimizers, make_optimizers, pyro_optimizer_tables
from pyro_vd.common.options import as_number, shown
from pyro_vd.compiled.betas import Betas


class UnrecordableOptimizer(Exception):
    """An optimizer whose step cannot be part of a program."""


class StepOptimizer:
    """One way to update parameters, whichever kind of optimizer it is made of.

    Args:
        optim: a ``pyro.optim`` optimizer, or a callable from a list of parameters to a ``torch.optim.Optimizer``.
        clip_norm: scale the gradient of all parameters to this norm where it is larger; None leaves it.

    Raises:
        TypeError: optim is neither.
        ValueError: SparseAdam; clip_norm <= 0; with a ``pyro.optim`` optimizer, which clips by itself.
    """

    def __init__(self, optim: PyroOptim | Callable[[list[Tensor]], Optimizer], clip_norm: float | None = None):
        wrong = _makes_no_optimizer(optim)
        if wrong or isinstance(optim, (Optimizer, nn.Module)) or not (isinstance(optim, PyroOptim) or callable(optim)):
            raise TypeError(
                "optim: expected a pyro.optim optimizer or a callable from parameters to a torch.optim.Optimizer, such "
                "as functools.partial(torch.optim.Adam, lr=1e-3), got "
                f"{shown(optim) if wrong else type(optim).__name__}"
            )
        _refuse_sparse(getattr(optim, "pt_optim_constructor", getattr(optim, "func", optim)))
        if clip_norm is not None and not 0 < (as_number(clip_norm) or 0) < math.inf:
            raise ValueError(f"clip_norm: expected a number > 0 or None, got {shown(clip_norm)}")
        if clip_norm is not None and isinstance(optim, PyroOptim):
            name: str = getattr(optim.pt_optim_constructor, "__name__", "PyroOptim")
            raise ValueError(
                f"clip_norm: expected None with {name} of pyro.optim, which clips by itself, got {clip_norm}; write "
                f"pyro.optim.{name}(..., clip_args={{'clip_norm': {clip_norm}}})"
            )
        self._optim, self._clip_norm = optim, clip_norm
        self._made: Optimizer | None = None
        self._rates: list[tuple[Tensor, Any]] = []  # of each group: the tensor that programs read, and its number
        self._betas = Betas()

    @property
    def is_pyro(self) -> bool:
        """Whether it is a ``pyro.optim`` optimizer: one of torch for each parameter."""
        return isinstance(self._optim, PyroOptim)

    @property
    def is_made(self) -> bool:
        """Whether there are optimizers of torch: from the first update on, or since :meth:`make`."""
        return bool(self.optimizers)

    def make(self, parameters: Sequence[Tensor]) -> None:
        """Make the optimizers as the first update would."""
        if isinstance(self._optim, PyroOptim):
            make_optimizers(self._optim, parameters)
        elif self._made is None:
            if not parameters:
                raise ValueError(
                    "optim: expected parameters to train, got a model and a guide without one that requires a "
                    "gradient; call evaluate_loss for the loss alone, or unfreeze a parameter"
                )
            self._made = _checked(self._optim(list(parameters)))

    def update(self, parameters: Sequence[Tensor]) -> None:
        """Clip and step with the gradients in ``.grad``; optimizers are made at the first call."""
        if isinstance(self._optim, PyroOptim):
            self._optim(list(parameters))
            return
        self.make(parameters)
        assert self._made is not None
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self._made.step()

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those of torch that do the work: one, or one for each parameter of a ``pyro.optim`` optimizer."""
        if not isinstance(self._optim, PyroOptim):
            return [] if self._made is None else [self._made]
        return [getattr(one, "optimizer", one) for one in self._optim.optim_objs.values()]

    def kept(self) -> list[dict | list]:
        """The dicts and lists in which optimizers keep their state, and what users add to them: schedulers, hooks."""
        tables: list[dict | list] = (
            [] if not isinstance(self._optim, PyroOptim) else list(pyro_optimizer_tables(self._optim))
        )
        for optimizer in self.optimizers:
            own = [one for one in vars(optimizer).values() if isinstance(one, (dict, list))]
            tables += [vars(optimizer), *own, *optimizer.state.values()]
        return tables + _hooks_of_all()

    def note_step(self) -> None:
        """Tell schedulers of the learning rate that a compiled step was a step of the optimizer."""
        for optimizer in self.optimizers:
            optimizer._opt_called = True  # type: ignore[attr-defined]

    def saved(self) -> dict[str, Any] | None:
        """Its state, not copied; None before it is made."""
        if not self.is_made:
            return None
        kind = ", ".join(sorted({type(one).__name__ for one in self.optimizers}))
        state = self._optim.get_state() if isinstance(self._optim, PyroOptim) else self._made.state_dict()  # type: ignore
        return {"kind": kind, "is_pyro": self.is_pyro, "state": state}

    def load(self, saved: dict[str, Any]) -> None:
        """Load what :meth:`saved` returned; what is not made yet loads it when it is made."""
        if isinstance(self._optim, PyroOptim):
            load_optimizers(self._optim, saved["state"])
        else:
            assert self._made is not None
            self._made.load_state_dict(saved["state"])

    def state(self) -> list[Tensor]:
        """All tensors that a step updates besides the parameters."""
        return [
            v for o in self.optimizers for state in o.state.values() for v in state.values() if isinstance(v, Tensor)
        ]

    def owners(self, parameters: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each parameter, itself and the tensors of its shape in the state: what its gradient changes."""
        owned = []
        for parameter in parameters:
            states = [optimizer.state[parameter] for optimizer in self.optimizers if parameter in optimizer.state]
            values = [value for state in states for value in state.values() if isinstance(value, Tensor)]
            owned.append([parameter, *(value for value in values if value.shape == parameter.shape)])
        return owned

    def counts(self) -> list[Tensor]:
        """Those of :meth:`state` that count steps."""
        return [
            state["step"]
            for o in self.optimizers
            for state in o.state.values()
            if isinstance(state.get("step"), Tensor)
        ]

    def move_counts(self, device: torch.device) -> None:
        """Keep the step counts on the device, where a compiled step adds to them without waiting for the host."""
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                if isinstance(state.get("step"), Tensor) and state["step"].device != device:
                    state["step"] = state["step"].to(device)
            for group in optimizer.param_groups:
                if "capturable" in group and device.type == "cuda":
                    group["capturable"] = True

    def groups(self) -> list[dict[str, Any]]:
        """Those of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def options(self) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """The options that programs hold, and the names of those that they read besides the learning rate."""
        return self._betas.look(self.optimizers, self.groups())

    def rates(self) -> list[Tensor]:
        """The learning rates as 0-dim tensors, with the values they have now; then betas that programs read.

        Raises:
            ValueError: one that is NaN or infinite; an optimizer without one.
        """
        return [*self._learning_rates(), *self._betas.now(self.groups())]

    def _learning_rates(self) -> list[Tensor]:
        rates = []
        for i, group in enumerate(self.groups()):
            if "lr" not in group:
                kinds = ", ".join(sorted({type(one).__name__ for one in self.optimizers}))
                raise ValueError(
                    f"optim: expected an optimizer with a learning rate named 'lr', got {kinds}; use torch.optim.Adam, "
                    "AdamW or SGD, or step with pyro.infer.SVI"
                )
            rate = group["lr"]
            if not isinstance(rate, Tensor):
                if i == len(self._rates):
                    tensor = torch.zeros((), dtype=torch.float64, device=group["params"][0].device)
                    self._rates.append((tensor, 0.0))
                tensor, number = self._rates[i]
                if rate != number:
                    if as_number(rate) is None or not math.isfinite(rate):
                        raise ValueError(
                            f"optim: expected a finite learning rate, got {shown(rate)}; nothing has been changed"
                        )
                    tensor.fill_(rate)
                    self._rates[i] = tensor, rate
                rate = tensor
            elif i == len(self._rates):
                self._rates.append((rate, None))
            rates.append(rate)
        return rates

    def has_hooks(self) -> bool:
        """Whether the user has hooks on the steps of an optimizer, which no compiled step would call."""
        names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
        own = any(getattr(optimizer, name, None) for optimizer in self.optimizers for name in names)
        return own or any(_hooks_of_all())

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A context to record :meth:`update` in: nothing depends on the value of a tensor or on a Python counter.

        Raises:
            ValueError: at the end, where a step has changed a number that is not a tensor.
        """
        groups = [(group, dict(group)) for group in self.groups()]
        states = [(state, dict(state)) for optimizer in self.optimizers for state in optimizer.state.values()]
        attributes = [(optimizer, _plain_attributes(optimizer)) for optimizer in self.optimizers]
        for (group, _), rate in zip(groups, self._learning_rates(), strict=True):
            group.update({name: value for name, value in _RECORDABLE.items() if name in group})
            group["lr"] = rate
        for (group, _), momentum in zip(groups, self._betas.tensors, strict=False):
            group["betas"] = (momentum, *group["betas"][1:])
        during = [dict(group) for group, _ in groups]
        try:
            yield
            for (group, _), options in zip(groups, during, strict=True):
                changed = [name for name, value in options.items() if group[name] is not value]
                if changed:
                    raise ValueError(f"changes its options {changed} in every step")
            for state, before in states:
                changed = [
                    name for name, value in before.items() if not isinstance(value, Tensor) and state[name] != value
                ]
                if changed:
                    raise ValueError(f"counts {changed} in Python numbers")
            for optimizer, before in attributes:
                now = _plain_attributes(optimizer)
                changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
                if changed:
                    raise ValueError(f"counts {changed} in Python numbers")
        finally:
            for current, before in (*groups, *states):
                current.clear()
                current.update(before)


# The implementation that is arithmetic on tensors throughout, the step count included.
_RECORDABLE = {"differentiable": True, "capturable": True, "foreach": False, "fused": False}


def _refuse_sparse(kind: Any) -> None:
    if isinstance(kind, type) and issubclass(kind, torch.optim.SparseAdam):
        raise ValueError(
            "optim: expected an optimizer of dense gradients, got SparseAdam, whose gradients are those of "
            "torch.nn.Embedding(sparse=True), which no random weight has; use torch.optim.Adam"
        )


def _plain_attributes(optimizer: Optimizer) -> dict[str, Any]:
    """The attributes of an optimizer that its steps may count in, as text: numbers, and lists and dicts of them."""
    own = {name: value for name, value in vars(optimizer).items() if name not in _KEPT}
    return {name: repr(value) for name, value in own.items() if isinstance(value, (bool, int, float, list, dict))}


# Of torch: what is looked at by itself, and what it or a scheduler marks.
_KEPT = {"param_groups", "state", "defaults", "_opt_called", "_warned_capturable_if_run_uncaptured"}


def _hooks_of_all() -> list[dict]:
    """What register_optimizer_step_pre_hook and its like add to: torch/optim/optimizer.py."""
    names = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    return [getattr(sys.modules[Optimizer.__module__], name, {}) for name in names]


def _makes_no_optimizer(optim: Any) -> bool:
    """Whether it is a class of something else."""
    return isinstance(optim, type) and not issubclass(optim, Optimizer)


def _checked(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optim: expected the callable to return a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    _refuse_sparse(type(optimizer))
    closure = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optim: expected an optimizer that steps from gradients, got {type(optimizer).__name__}, which evaluates "
            "the loss itself several times a step; use torch.optim.Adam, AdamW or SGD"
        )
    return optimizer
