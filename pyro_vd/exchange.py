"""How random weights are put into a net for a call, and taken out again.

Every module that holds a parameter holds the drawn weight in its place, by identity of the parameter, so that a layer
under two names or a tied parameter stays whole. Afterwards every module holds what it held before. Activation
checkpointing runs parts of the net again in the backward pass: there the same weights are put in once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vd._torch import (
    current_node,
    gradients_are_accumulated,
    inputs_of_reentrant_checkpoint,
    is_recording,
    parametrizations_are_cached,
    when_backward_pass_ends,
)
from pyro_vd.held import Held, tensors_in
from pyro_vd.layout import Layout
from pyro_vd.rollback import write_buffers
from pyro_vd.weights import RandomWeight

Values = Mapping[nn.Parameter, Tensor]

ONE_RUN = threading.RLock()  # held during a run of a net or model: all threads share the nets and Pyro's handlers


def call_with(
    layout: Layout, values: Values, args: tuple, kwargs: dict, no_update: Callable[[], bool] = lambda: False
) -> Any:
    """``net(*args, **kwargs)`` with values in the place of some of its parameters.

    Buffers of modules in training mode are updated, unless ``no_update()``, and if they stay finite; one not finite
    leaves all as they were. What ``torch.compile`` has compiled of the net runs eagerly: CompiledSVI compiles the
    whole step.
    """
    net: Any = layout.net
    if parametrizations_are_cached() and any(hasattr(module, "parametrizations") for module in layout.modules):
        raise ValueError(
            "BayesianModule: expected a call outside of torch.nn.utils.parametrize.cached(), which would keep the "
            "weight of one draw for the next; leave that context out"
        )
    exchange = _Exchange(layout, values)
    try:
        exchange.put_in()
        if layout.is_compiled:  # a compiler takes a parameter for a parameter
            with torch.compiler.set_stance("force_eager"):
                output = net(*args, **kwargs)
        else:
            output = net(*args, **kwargs)
        exchange.take_out(keep=True, no_update=no_update)
    except BaseException:
        exchange.take_out()
        raise
    if torch.is_grad_enabled() and values:
        exchange.hold_for_backward(output)
    return output


def check_net(net: nn.Module) -> None:
    """Raise for a net that no weight can be put into."""
    for path, module in net.named_modules():
        where = (
            f"BayesianModule: expected a net of plain modules, got a {type(module).__name__} at {path or 'the top'!r}"
        )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(
                f"{where}, which runs on copies of the parameters; pass .module instead, and wrap the loss "
                "module, DistributedDataParallel(TraceVD_ELBO()(model, guide))"
            )
        if isinstance(module, torch.jit.ScriptModule):
            if any(own.requires_grad for own in module.parameters()):
                raise TypeError(
                    f"{where}, whose code takes no other weights than its own; pass the module from before "
                    "torch.jit.script or torch.jit.trace, or freeze it: for p in module.parameters(): "
                    "p.requires_grad_(False)"
                )
            continue
        for name, parameter in module._parameters.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"BayesianModule: expected parameters with a shape, got {f'{path}.{name}'.strip('.')!r} of a lazy "
                    "module that has seen no data; call net(x) once before BayesianModule(net, ...)"
                )


def in_use() -> RuntimeError:
    """The error where a net holds values that another thread has put in."""
    return RuntimeError(
        "BayesianModule: expected a net that holds its own parameters, got one that another call, in another thread or "
        "in a backward pass that is under way, has given drawn weights; give each thread a net of its own, "
        "copy.deepcopy(net), or let one thread finish before the next"
    )


class _Exchange:
    """The values of one call of a net, and what its modules held before.

    Args:
        layout: of the net.
        values: by parameter.
    """

    def __init__(self, layout: Layout, values: Values):
        self.values = values
        self.modules = layout.modules
        self.places = [(*place, parameter) for parameter in values for place in layout.places.get(parameter, ())]
        self.left: list[Tensor] = []  # what the call has left in attributes of modules
        self.buffers: dict[Tensor, Tensor] = {}  # as they were at the start of the call, where it has written to them
        self.is_reentrant = self.is_watching = False
        self._thread = 0
        self._inside: object = None
        self._before: list[Held] = []

    def put_in(self, token: object = True) -> None:
        """Put the values in, and copies of the buffers that the call may write to."""
        for module, key, parameter in self.places:
            table = vars(module)["_parameters"]
            if isinstance(table, _Weights):
                table.exchange.give_way()
            if module._parameters.get(key) is not parameter:
                raise in_use()
        self._inside, self._thread = token, threading.get_ident()
        self._before = [Held(module) for module in self.modules]
        for module, key, parameter in self.places:
            table = vars(module)["_parameters"]
            if not isinstance(table, _Weights):
                table = _Weights(table)
                table.exchange = self
                vars(module)["_parameters"] = table
            table[key] = self.values[parameter]
        self.is_watching = token is True and torch.is_grad_enabled()
        for held in self._before:
            if held.buffers and held.module.training:
                if token is True or not is_recording():  # a recording of the backward pass has no stand-ins for them
                    self._copy_buffers()
                break

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        copies: dict[Tensor, Tensor] = {}
        for module in self.modules:
            for key, buffer in module._buffers.items() if module.training else ():
                if buffer is not None:
                    if buffer not in copies:
                        copies[buffer] = self.buffers.get(buffer, buffer).clone()
                    module._buffers[key] = copies[buffer]

    def give_way(self) -> None:
        """Take the values out, because the backward pass has reached another call."""
        # A backward pass begins with the latest operation: it leaves a later call before it reaches an earlier one.
        if self._inside is True or self._thread != threading.get_ident():
            raise in_use()
        self.take_out(self._inside)

    def take_out(self, token: object = True, keep: bool = False, no_update: Callable[[], bool] = lambda: True) -> None:
        """Put back what the modules held; ``keep`` what the net has left in attributes, and update the buffers."""
        if self._inside is not token:
            return
        updates: dict[Tensor, Tensor] = {}
        update_buffers: bool | None = None
        while self._before:  # those that are left, where an interrupt has ended the first attempt
            held = self._before[-1]
            if held.buffers:
                update_buffers = not no_update() if update_buffers is None else update_buffers
                updates.update(held.put_back_buffers(update_buffers))
            self.left += held.put_back(self._is_value, keep, exchanged=token is not True)
            self._before.pop()
        self._inside = None
        if update_buffers and updates:
            if torch.is_grad_enabled():
                self.buffers = {own: own.clone() for own, new in updates.items() if new._version}
            write_buffers(updates)

    def _is_value(self, tensor: Tensor) -> bool:
        return isinstance(tensor, RandomWeight) or any(tensor is value for value in self.values.values())

    def hold_for_backward(self, output: Any) -> None:
        """Put the values in again for every backward pass that comes from ``output``."""
        for tensor in (*tensors_in(output), *self.left):
            if tensor.requires_grad and tensor.grad_fn is not None and not isinstance(tensor, RandomWeight):
                tensor.register_hook(self._backward_begins)
        self.left = []

    def note_reentrant(self, inputs: Any) -> None:
        """Note reentrant checkpointing of a layer; raise where its weights would get no gradient."""
        self.is_reentrant = True
        if not any(tensor.requires_grad for tensor in tensors_in(inputs)):
            raise _reentrant("of a layer whose input needs no gradient, so that its weights get none")

    def _backward_begins(self, gradient: Any) -> None:
        if self.is_reentrant and (torch.is_grad_enabled() or not gradients_are_accumulated()):
            raise _reentrant("and a gradient by torch.autograd.grad (as in CompiledSVI), inputs= or create_graph=")
        if torch.is_grad_enabled():  # create_graph: a second derivative enters the net's graph anywhere
            self._hook_nodes(current_node())
        self._put_in_for_backward()

    def _put_in_for_backward(self, gradients: Any = None) -> None:
        if self._inside is None:
            end = _End(self)
            self.put_in(end.token)
            when_backward_pass_ends(end)

    def _hook_nodes(self, node: Any) -> None:
        """Have the values put in by every node of the graph between ``node`` and the values."""
        # Not beyond the values: their nodes, which they hold, must not hold them.
        seen = {tensor.grad_fn for value in self.values.values() for tensor in _parts(value)}
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if not hasattr(node, "variable"):  # a leaf
                node.register_prehook(self._put_in_for_backward)
                waiting += [following for following, _ in node.next_functions]


class _Weights(dict):
    """The parameters of a module with values in their places; notices a use by reentrant checkpointing."""

    exchange: _Exchange

    def __getitem__(self, key: str) -> Any:
        if self.exchange.is_watching and not torch.is_grad_enabled():
            inputs = inputs_of_reentrant_checkpoint()
            if inputs is not None:
                self.exchange.note_reentrant(inputs)
        return super().__getitem__(key)


def _reentrant(what: str) -> ValueError:
    return ValueError(
        "BayesianModule: expected activation checkpointing that gives every weight its gradient, got "
        f"torch.utils.checkpoint.checkpoint(..., use_reentrant=True) {what}; write use_reentrant=False"
    )


class _End:
    """Takes the values out when a backward pass ends; one that fails only drops this object."""

    def __init__(self, exchange: _Exchange):
        self.token, self.exchange = object(), exchange

    def __call__(self) -> None:
        self.exchange.take_out(self.token)

    def __del__(self) -> None:
        if hasattr(self, "exchange"):  # not where an interrupt has ended __init__
            self.exchange.take_out(self.token)


def _parts(value: Tensor) -> list[Tensor]:
    """The tensors that a value holds on to."""
    return [value.loc, value.variance] if isinstance(value, RandomWeight) else [value]
