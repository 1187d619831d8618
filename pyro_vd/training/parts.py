"""What a checkpoint holds, part by part: how each is copied, compared with what is there, and loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vd._pyro import pyro_optimizer_tables, store_tables
from pyro_vd.common.options import shown
from pyro_vd.compiled.svi import CompiledSVI
from pyro_vd.compiled.walk import surroundings_of


@dataclass(frozen=True)
class Part:
    """One thing that is saved: ``save`` copies its state, ``check`` raises where a state does not fit.

    ``load`` loads one, ``keep`` returns a function that puts everything back as it is now; ``buffers``
    names those tensors that may be NaN.
    """

    name: str
    save: Callable[[], Any]
    check: Callable[[Any], None]
    load: Callable[[Any], Any]
    keep: Callable[[], Callable[[], Any]]
    buffers: Callable[[], list[str]] = list


def parts_of(svi: Any, modules: Any, optimizers: Any, schedulers: Any) -> list[Part]:
    """The parts of a checkpoint, modules first.

    Raises:
        TypeError: an argument of another kind.
    """
    given = _mapping("modules", modules, (nn.Module,), "torch modules")
    if svi is not None and not isinstance(svi, (SVI, CompiledSVI)):
        raise TypeError(
            f"svi: expected a pyro.infer.SVI or a CompiledSVI, got {shown(svi)}; write modules= and optimizers="
        )
    optimizers = _mapping("optimizers", optimizers, (Optimizer, PyroOptim), "optimizers")
    schedulers = _mapping("schedulers", schedulers, (), "schedulers")
    if svi is None and not given and not optimizers:
        raise TypeError("checkpoint: expected svi, modules or optimizers, got none; write svi=svi")
    found = dict(given)
    if svi is not None:
        roots = [("the guide", svi.guide), ("the model", svi.model)]
        reached = [m for m in surroundings_of(roots).modules if next(iter(m.state_dict()), None) is not None]
        covered = {m for module in given.values() for m in module.modules()}
        tops = [m for m in reached if not any(m in set(other.modules()) - {other} for other in reached)]
        found |= {f"svi.{i}": m for i, m in enumerate(tops) if m not in covered}
    parts = [_module(f"modules.{name}", module) for name, module in found.items()]
    parts.append(_store([p for module in found.values() for p in module.parameters()]))
    if isinstance(svi, SVI):
        parts.append(_pyro_optimizer("svi.optim", svi.optim))
    elif svi is not None:
        parts.append(Part("svi", svi.state_dict, lambda state: None, svi.load_state_dict, _keeper(svi)))
    for name, one in optimizers.items():
        make: Any = _pyro_optimizer if isinstance(one, PyroOptim) else _optimizer
        parts.append(make(f"optimizers.{name}", one))
    for name, one in schedulers.items():
        kind = type(one).__name__
        check = _same_kind(f"schedulers.{name}", kind)
        save = lambda one=one, kind=kind: {"kind": kind, "state": copy.deepcopy(one.state_dict())}  # noqa: E731
        load = lambda state, one=one: one.load_state_dict(copy.deepcopy(state["state"]))  # noqa: E731
        parts.append(Part(f"schedulers.{name}", save, check, load, _keeper(one)))
    return parts


def _module(name: str, module: nn.Module) -> Part:
    def check(state: dict[str, Any]) -> None:
        _same_tensors(
            name, state, module.state_dict(), "call guide(*args) once before, where its first call makes them"
        )

    def buffers() -> list[str]:
        return [key for key, _ in module.named_buffers()]

    return Part(name, lambda: dict(module.state_dict()), check, module.load_state_dict, _keeper(module), buffers)


def _store(owned: list[Tensor]) -> Part:
    """Pyro's parameter store; a parameter of a module may be absent from it, as the module is saved itself."""
    own = set(owned)

    def save() -> dict[str, Any]:
        return {name: (value.detach(), value in own) for name, value in store_tables()[0].items()}

    def check(state: dict[str, Any]) -> None:
        now = {name: value for name, value in store_tables()[0].items() if name in state or value not in own}
        there = {name: value for name, (value, is_owned) in state.items() if name in now or not is_owned}
        _same_tensors("Pyro's parameter store", there, now, "run guide(*args) once before, which makes them")

    @torch.no_grad()
    def load(state: dict[str, Any]) -> None:
        for name, value in store_tables()[0].items():
            if name in state:
                value.copy_(state[name][0])

    def keep() -> Callable[[], Any]:
        before = {name: (value.detach().clone(), True) for name, value in store_tables()[0].items()}
        return lambda: load(before)

    return Part("store", save, check, load, keep)


def _optimizer(name: str, optimizer: Optimizer) -> Part:
    def shapes() -> list:
        return [[(list(p.shape), str(p.dtype)) for p in group["params"]] for group in optimizer.param_groups]

    def save() -> dict[str, Any]:
        state = optimizer.state_dict()
        return {"kind": type(optimizer).__name__, "shapes": shapes(), "state": copy.deepcopy(state)}

    def check(state: dict[str, Any]) -> None:
        _same_kind(name, type(optimizer).__name__)(state)
        if state["shapes"] != shapes():
            raise ValueError(
                f"{name}: expected parameters of the shapes {shapes()}, got {state['shapes']}; give it the parameters "
                "in the order in which they were when it was saved"
            )

    def load(state: dict[str, Any]) -> None:
        optimizer.load_state_dict(copy.deepcopy(state["state"]))

    return Part(name, save, check, load, _keeper(optimizer))


def _pyro_optimizer(name: str, optimizer: PyroOptim) -> Part:
    """One of ``pyro.optim``: its optimizers of torch are made again when their parameters are met."""
    kind = getattr(optimizer.pt_optim_constructor, "__name__", type(optimizer).__name__)

    def save() -> dict[str, Any]:
        waiting = pyro_optimizer_tables(optimizer)[3]
        return {"kind": kind, "state": copy.deepcopy({**waiting, **optimizer.get_state()})}

    def load(state: dict[str, Any]) -> None:
        for table in pyro_optimizer_tables(optimizer)[1:]:
            table.clear()
        optimizer.set_state(copy.deepcopy(state["state"]))

    def keep() -> Callable[[], Any]:
        tables = [(table, dict(table)) for table in pyro_optimizer_tables(optimizer)[1:]]

        def back() -> None:
            for table, before in tables:
                table.clear()
                table.update(before)

        return back

    return Part(name, save, _same_kind(name, kind), load, keep)


def _keeper(one: Any) -> Callable[[], Callable[[], Any]]:
    def keep() -> Callable[[], Any]:
        before = copy.deepcopy(one.state_dict())
        return lambda: one.load_state_dict(before)

    return keep


def _same_kind(name: str, kind: str) -> Callable[[Any], None]:
    def check(state: Any) -> None:
        if state["kind"] != kind:
            raise ValueError(
                f"{name}: expected the state of {kind}, got that of {state['kind']}; give one of the latter"
            )

    return check


def _same_tensors(name: str, saved: Mapping[str, Any], now: Mapping[str, Any], cure: str) -> None:
    missing, extra = [key for key in now if key not in saved], [key for key in saved if key not in now]
    if missing or extra:
        raise ValueError(
            f"{name}: expected a file with exactly the tensors that there are, got one without {missing} and with"
            f" {extra} besides; {cure}"
        )
    for key, value in saved.items():
        if not isinstance(value, Tensor) or not isinstance(now[key], Tensor):
            continue
        found, there = (tuple(value.shape), value.dtype), (tuple(now[key].shape), now[key].dtype)
        if found != there:
            raise ValueError(
                f"{name}: expected {key!r} of shape {there[0]} and {there[1]}, got shape {found[0]} and {found[1]}; "
                "load it into the program that saved it"
            )


def _mapping(name: str, value: Any, kinds: tuple[type, ...], what: str) -> dict[str, Any]:
    value = {} if value is None else value
    good = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if not good or not all(isinstance(v, kinds) if kinds else hasattr(v, "load_state_dict") for v in value.values()):
        raise TypeError(f'{name}: expected {what} by name, got {shown(value)}; write {name}={{"first": ...}}')
    return dict(value)
