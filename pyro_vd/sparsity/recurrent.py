"""Units of LSTM, GRU and RNN layers, in every layer and direction."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vd.sparsity.axes import bound
from pyro_vd.sparsity.found import Found
from pyro_vd.sparsity.labels import Product, Value, reachable, value_of

RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
PACKING = {"_pack_padded_sequence", "_pad_packed_sequence"}


def follow_sequences(found: Found, name: str, output: Any, args: tuple, kwargs: dict, sizes_are_free: bool) -> bool:
    """Recurrent layers, sequences that are packed, and last states that are put in order; whether there is a rule."""
    if name in RECURRENT:
        run = read_call(args) if sizes_are_free else None
        return run is not None and _recurrent(found, run, output)
    x = args[0] if args and isinstance(args[0], Tensor) else None
    if x is None:
        return False
    if name in PACKING and (value := found.seen.get(x)) is not None and value.axis == x.dim() - 1:
        data, constant = output[0], value.constant & (name == "_pack_padded_sequence")  # padding is another constant
        found.seen[data] = value_of(data, data.dim() - 1, value.labels, constant)
        return True
    if name in ("index_select", "squeeze") and (stack := found.stacks.get(x)) is not None:
        (dim,) = bound(args[1:], kwargs, "dim")
        if x.dim() == 3 and dim is not None and dim % 3 == 1:  # the batch
            found.stacks[output] = tuple(replace(value, axis=output.dim() - 1) for value in stack)
            return True
    return False


def one_state(found: Found, name: str, args: tuple) -> Value | None:
    """The last states of one layer and direction, where ``args`` are those of ``states[index]``."""
    if name != "getitem":
        return None
    stack, index = found.stacks.get(args[0]), args[1]
    index = index[0] if isinstance(index, tuple) and index else index
    return stack[index] if stack is not None and type(index) is int else None


class Run(NamedTuple):
    """A call: the sequences, the first states, and for each layer the weights of each direction.

    The weights are those of the inputs, of shape (gates * units, inputs), and of the units, of shape
    (gates * units, units), and the two biases if any.
    """

    x: Tensor
    states: Any
    layers: list[list[list[Tensor]]]

    @property
    def weights(self) -> list[Tensor]:
        return [one for layer in self.layers for cell in layer for one in cell]


def read_call(args: tuple) -> Run | None:
    """The arguments of ``torch.lstm`` and its like; None of one with projections, or with a weight that is tied."""
    if len(args) != 9:
        return None
    packed = not isinstance(args[3], bool)  # the sizes of the batch come second
    states, weights, biased, layers, _, _, both_ways = args[1 + packed : 8 + packed]
    directions, several = 1 + both_ways, 4 if biased else 2
    if len(weights) != several * directions * layers or any(a is b for a, b in itertools.combinations(weights, 2)):
        return None
    cells = [list(weights[i : i + several]) for i in range(0, len(weights), several)]
    return Run(args[0], states, [cells[i : i + directions] for i in range(0, len(cells), directions)])


def _recurrent(found: Found, run: Run, output: tuple[Tensor, ...]) -> bool:
    if any(one in found.seen for one in tree_leaves(run.states)):
        return False
    if any(one not in found.leaves or found.leaves[one] for one in run.weights):
        return False
    value = found.seen.get(run.x)
    if value is None or value.axis != run.x.dim() - 1:
        found.unknown(run.x)
        value = None
    states: list[Value] = []
    for layer in run.layers:
        ends = [_cell(found, value, *cell) for cell in layer]
        value = _varying(output[0].dim() - 1, [label for end in ends for label in end.labels])
        states += ends
    found.seen[output[0]] = value
    found.levels.append([state.labels for state in states])
    for last in output[1:]:
        ends = [replace(state, axis=last.dim() - 1) for state in states]
        if len(ends) == 1:
            found.seen[last] = ends[0]
        else:
            found.stacks[last] = tuple(ends)
    return True


def _cell(found: Found, value: Value | None, inputs: Tensor, hidden: Tensor, *biases: Tensor) -> Value:
    """One layer in one direction: units read each other, and are needed where one that reads them is."""
    units = found.labels.new(hidden.shape[1])
    gates = len(hidden) // len(units)
    for one in (inputs, hidden, *biases):
        found.leaves[one][0], found.uses[one] = units * gates, 1
    found.leaves[hidden][1] = units
    columns = found.of(inputs, 1)
    if value is None:
        found.labels.need(columns)
    else:
        found.labels.join(value.labels, columns)
        live = (inputs != 0).cpu() & ~(value.constant & (value.values == 0))
        found.products.append(Product(inputs, None, value, 0, 1, live))
    state = _varying(1, units)
    read = reachable((hidden != 0).unflatten(0, (gates, -1)).any(0).cpu())
    found.products.append(Product(hidden, None, state, 0, 1, read.repeat(gates, 1)))
    return state


def _varying(axis: int, labels: list[int]) -> Value:
    """None of these channels is a constant."""
    return Value(axis, labels, torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels)))
