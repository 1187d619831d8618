"""Compiled programs of predictions, kept for the next prediction.

A prediction takes a model and a guide anew, so that it sees what has changed in them, and most of its time would be
that of XLA. It is traced in every call. What the trace closes over, such as parameters, is an argument of the program,
and a program whose text has been compiled before is not compiled again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from pyro_vd.common.examples import is_array
from pyro_vd.numpyro._jax import eval_jaxpr, is_traced

# The programs of one prediction are two or three for each length of its pieces.
MOST_KEPT = 32
_CONFIG: Any = jax.config  # whose settings the stubs do not have
_KEPT: OrderedDict[tuple, Any] = OrderedDict()


def program_of(function: Callable) -> Callable:
    """``function`` as a program; what is no array among its arguments is the same in every call, and taken as it is."""
    programs: dict[Any, Callable] = {}

    def call(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        arrays = [leaf for leaf in leaves if is_array(leaf)]

        def with_arrays(arrays: list) -> Any:
            rest = iter(arrays)
            return function(*jax.tree.unflatten(tree, [next(rest) if is_array(leaf) else leaf for leaf in leaves]))

        kind = tree, *map(_kind, arrays)
        if kind not in programs:
            programs[kind] = _program(with_arrays, arrays)
        return programs[kind](arrays)

    return call


def _program(function: Callable, arrays: list) -> Callable:
    """The program of ``function`` for arrays like these."""
    if _CONFIG.jax_disable_jit or _CONFIG.jax_debug_nans or _CONFIG.jax_debug_infs or any(map(is_traced, arrays)):
        return jax.jit(function)
    closed, results = jax.make_jaxpr(function, return_shape=True)(arrays)
    if any(map(is_traced, closed.consts)):
        return jax.jit(function)
    # An argument that is not used stays: programs that leave out different ones have the same text.
    lowered = jax.jit(lambda own, arrays: eval_jaxpr(closed.jaxpr, own, *arrays), keep_unused=True).lower(
        closed.consts, arrays
    )
    program = _compiled_once(lowered, (*closed.out_avals, *map(_kind, [*closed.consts, *arrays])))
    structure = jax.tree.structure(results)
    return lambda arrays: jax.tree.unflatten(structure, program(closed.consts, arrays))


def _compiled_once(lowered: Any, kinds: tuple) -> Any:
    """A lowered program as one that runs; that of before where its text is the same, and says all."""
    text = lowered.as_text()
    if "callback" in text or "num_partitions = 1 " not in text:  # functions of Python; the devices of a mesh
        return lowered.compile()
    key = text, kinds, _CONFIG.jax_default_device
    program = _KEPT.pop(key, None) or lowered.compile()
    _KEPT[key] = program
    while len(_KEPT) > MOST_KEPT:
        _KEPT.popitem(last=False)
    return program


def _kind(array: Any) -> tuple:
    """What a program depends on of an array besides its values."""
    placed = (array.sharding, array.committed) if isinstance(array, Array) and not is_traced(array) else ()
    return jax.typeof(array), *placed
