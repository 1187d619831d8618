"""The optimizers of a compiled step: those of torch and Pyro themselves, run while the step is recorded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vd.common.options import as_number, shown


class StepOptimizer:
    """One way to update parameters, whichever kind of optimizer it is made of.

    Args:
        optim: a ``pyro.optim`` optimizer, or a callable from a list of parameters to a ``torch.optim.Optimizer``.
        clip_norm: scale the gradient of all parameters to this norm where it is larger; None leaves it.

    Raises:
        TypeError: optim is neither.
        ValueError: clip_norm <= 0; with a ``pyro.optim`` optimizer, which clips by itself.
    """

    def __init__(self, optim: PyroOptim | Callable[[list[Tensor]], Optimizer], clip_norm: float | None = None):
        if isinstance(optim, Optimizer) or not (isinstance(optim, PyroOptim) or callable(optim)):
            raise TypeError(
                "optim: expected a pyro.optim optimizer or a callable from parameters to a torch.optim.Optimizer, such "
                f"as functools.partial(torch.optim.Adam, lr=1e-3), got {type(optim).__name__}"
            )
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
        self._rates: dict[tuple[int, int], tuple[Tensor, float]] = {}

    def update(self, parameters: Sequence[Tensor]) -> None:
        """Clip and step with the gradients in ``.grad``; optimizers are made at the first call."""
        if isinstance(self._optim, PyroOptim):
            self._optim(list(parameters))
            return
        if self._made is None:
            self._made = _checked(self._optim(list(parameters)))  # type: ignore[operator]
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self._made.step()

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those of torch that do the work: one, or one for each parameter of a ``pyro.optim`` optimizer."""
        if not isinstance(self._optim, PyroOptim):
            return [] if self._made is None else [self._made]
        return [getattr(one, "optimizer", one) for one in self._optim.optim_objs.values()]

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
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].to(device)
            for group in optimizer.param_groups:
                if "capturable" in group and device.type == "cuda":
                    group["capturable"] = True

    def rates(self) -> list[Tensor]:
        """The learning rates as 0-dim tensors, with the values they have now."""
        for i, optimizer in enumerate(self.optimizers):
            for j, group in enumerate(optimizer.param_groups):
                if isinstance(group["lr"], Tensor):
                    continue
                rate, value = self._rates.get((i, j), (None, None))
                if rate is None:
                    rate = torch.zeros((), dtype=torch.float64, device=group["params"][0].device)
                if value != group["lr"]:
                    rate.fill_(group["lr"])
                    self._rates[i, j] = rate, group["lr"]
        return [rate for rate, _ in self._rates.values()]

    def constants(self) -> tuple:
        """What a recorded step has taken as it was: every option but the learning rate, made hashable."""
        return tuple(
            value
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for name, value in group.items()
            if name not in _VARIABLE and not isinstance(value, Tensor)
        )

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within it :meth:`update` can be recorded: nothing depends on the value of a tensor or on a Python counter.

        Raises:
            ValueError: at the end, where a step has changed a number that is not a tensor.
        """
        optimizers = self.optimizers
        groups = [(group, dict(group)) for optimizer in optimizers for group in optimizer.param_groups]
        states = [(state, dict(state)) for optimizer in optimizers for state in optimizer.state.values()]
        for i, optimizer in enumerate(optimizers):
            for j, group in enumerate(optimizer.param_groups):
                group.update({name: value for name, value in _RECORDABLE.items() if name in group})
                if not isinstance(group["lr"], Tensor):
                    group["lr"] = self._rates[i, j][0]
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
        finally:
            for current, before in (*groups, *states):
                current.clear()
                current.update(before)


_VARIABLE = ("params", "lr", "initial_lr")
# The implementation that is arithmetic on tensors throughout, the step count included.
_RECORDABLE = {"differentiable": True, "capturable": False, "foreach": False, "fused": False}


def _checked(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optim: expected the callable to return a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    closure = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optim: expected an optimizer that steps from gradients, got {type(optimizer).__name__}, which evaluates "
            "the loss itself several times a step; use torch.optim.Adam, AdamW or SGD"
        )
    return optimizer
