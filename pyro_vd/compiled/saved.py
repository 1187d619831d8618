"""What a training by CompiledSVI saves besides its parameters, and loads again."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor

from pyro_vd.arguments import check_finite_tensor
from pyro_vd.compiled.optimizers import StepOptimizer
from pyro_vd.compiled.surroundings import Surroundings
from pyro_vd.compiled.trained import TrainedParameters

_KEYS = {"kind", "version", "steps", "started", "accumulate", "parameters", "gradients", "optimizer"}


def state_of(
    optimizer: StepOptimizer, parameters: TrainedParameters, steps: int, accumulate: int, started: bool
) -> dict[str, Any]:
    """A copy of the state, of tensors and plain Python values only."""
    if optimizer.is_pyro and accumulate > 1:
        raise ValueError(
            f"state_dict: expected accumulate=1 or an optimizer of torch.optim, got a pyro.optim optimizer with "
            f"accumulate={accumulate}, whose training would not go on to the last digit; write "
            "optim=functools.partial(torch.optim.Adam, lr=...)"
        )
    gradients = [None if p.grad is None or accumulate == 1 else p.grad.clone() for p in parameters.tensors]
    return {
        "kind": "CompiledSVI",
        "version": 1,
        "steps": steps,
        "started": started,
        "accumulate": accumulate,
        "parameters": [(name, tuple(p.shape)) for name, p in parameters.named()],
        "gradients": gradients,
        "optimizer": copy.deepcopy(optimizer.saved()),
    }


def load_state(
    state: Any, optimizer: StepOptimizer, parameters: TrainedParameters, surroundings: Surroundings, accumulate: int
) -> bool:
    """Load a state, all or nothing; returns whether the optimizer has been stepped.

    Raises:
        ValueError: a state of something else, or one that does not fit.
    """
    if not isinstance(state, dict) or state.get("kind") != "CompiledSVI" or not _KEYS <= state.keys():
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"state: expected what CompiledSVI.state_dict() returned, got {got}; load the state of an optimizer by "
            ".optimizer.load_state_dict, that of a net by its own load_state_dict"
        )
    if state["version"] != 1:
        raise ValueError(f"state: expected version 1, got {state['version']!r}, of another version of pyro_vd")
    if state["accumulate"] != accumulate:
        raise ValueError(
            f"state: expected one of accumulate={accumulate}, got accumulate={state['accumulate']}; make the "
            "CompiledSVI with the latter"
        )
    _check_finite("optimizer", state["optimizer"])
    _check_finite("gradients", state["gradients"])
    saved = state["optimizer"]
    if state["parameters"]:
        _check_parameters(state, optimizer, parameters, surroundings)
        if not optimizer.is_pyro:
            optimizer.make(parameters.tensors)
    own = optimizer.saved()
    kind = None if own is None else own["kind"]
    if saved is not None and optimizer.is_pyro != saved["is_pyro"]:
        kinds = ("a callable that returns a torch.optim.Optimizer", "a pyro.optim optimizer")
        raise ValueError(
            f"state: expected one of {kinds[optimizer.is_pyro]}, as optim is, got one of {kinds[saved['is_pyro']]}"
        )
    if saved is not None and kind not in (None, saved["kind"]):
        raise ValueError(f"state: expected one of {kind}, as optim makes, got one of {saved['kind']}")
    if saved is not None:
        optimizer.load(copy.deepcopy(saved))
    for parameter, gradient in zip(parameters.tensors, state["gradients"], strict=False):
        if accumulate > 1:
            parameter.grad = None if gradient is None else gradient.clone().to(parameter)
    return bool(state["started"])


def _check_finite(where: str, part: Any) -> None:
    """ValueError for NaN or infinity in a tensor of a state, or for a number that is NaN."""
    if isinstance(part, Tensor) and part.is_floating_point():
        check_finite_tensor(f"state: {where}", part, "load a state from before training failed")
    elif isinstance(part, float) and math.isnan(part):
        raise ValueError(f"state: {where}: expected a number, got nan; load a state from before training failed")
    elif isinstance(part, (dict, list, tuple)):
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            _check_finite(f"{where}[{key!r}]", value)


def _check_parameters(
    state: dict, optimizer: StepOptimizer, parameters: TrainedParameters, surroundings: Surroundings
) -> None:
    """Find the parameters of a state, and raise where there are others."""
    saved = {name: tuple(shape) for name, shape in state["parameters"]}
    if not parameters.met and optimizer.is_pyro:
        parameters.expected = saved  # their names in Pyro's store are known when the first step meets them
        return
    if not parameters.met and not optimizer.is_made:
        parameters.start(surroundings, [*saved])
    found = {name: tuple(p.shape) for name, p in parameters.named()}
    missing = [name for name in saved if name not in found]
    extra = [name for name in found if name not in saved]
    if missing or extra:
        raise ValueError(
            f"state: expected one of the parameters {list(found)}, got one without {extra} and with {missing} besides; "
            "load it into a CompiledSVI of the same model and guide, whose guide has its parameters (call guide(*args) "
            "once), after Pyro's store where pyro.param makes them"
        )
    for name, shape in saved.items():
        if found[name] != shape:
            raise ValueError(f"state: expected parameter {name!r} of shape {found[name]}, got {shape}")
    if [*found] != [*saved]:
        raise ValueError(f"state: expected the parameters in the order {list(found)}, got {list(saved)}")
