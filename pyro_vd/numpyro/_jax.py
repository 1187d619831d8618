"""Every private corner of JAX and Quax that this package uses, each with one canary test.

Tried with jax 0.9.1 to 0.12.0.1 and quax 0.4.0 to 0.4.6.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import quax
from jax.extend.core import primitives

# ``jax.extend`` is public and does not promise that a primitive keeps its name or its parameters:
# https://docs.jax.dev/en/latest/jax.extend.core.html
# ``jit_p`` is a function under jax.jit, ``remat_p`` one under jax.checkpoint (public since jax 0.8.2),
# ``stop_gradient_p`` and ``sharding_constraint_p`` are views that take every element as it is.
jit_p: Any = primitives.jit_p
remat_p: Any = primitives.remat_p
stop_gradient_p: Any = primitives.stop_gradient_p
sharding_constraint_p: Any = primitives.sharding_constraint_p

# The functions of jax.numpy ask every argument for ``__jax_array__`` in this file, before they refuse it:
# https://github.com/jax-ml/jax/blob/jax-v0.10.2/jax/_src/numpy/util.py
_ARGUMENT_CHECK = "jax._src.numpy.util"


def asked_by_jax_numpy() -> bool:
    """Whether the caller's caller is the check of arguments of ``jax.numpy``."""
    return sys._getframe(2).f_globals.get("__name__") == _ARGUMENT_CHECK


def eval_jaxpr(jaxpr: Any, constants: Sequence[Any], *arrays: Any) -> list[Any]:
    """The results of a jaxpr. ``jax.core.eval_jaxpr`` is public and missing in the stubs."""
    return jax.core.eval_jaxpr(jaxpr, constants, *arrays)  # type: ignore[attr-defined]


def replace_rule(primitive: Any) -> Callable[[Callable], Callable]:
    """``quax.register`` before Quax's own rule for the primitive.

    ``precedence`` is that of plum's dispatch: https://github.com/patrick-kidger/quax/blob/v0.4.6/quax/_core.py
    """
    return quax.register(primitive, precedence=1)


def is_traced(value: Any) -> bool:
    """Whether the value of an array is not known before the program runs.

    ``jax.core.Tracer`` is public and missing in the stubs: https://docs.jax.dev/en/latest/jax.core.html
    """
    return isinstance(value, jax.core.Tracer)  # type: ignore[attr-defined]


def is_known_false(condition: Any) -> bool:
    """Whether an array of one truth value is False and known to be, as under ``jax.grad`` alone, not under jit."""
    try:
        return not bool(condition)
    except jax.errors.ConcretizationTypeError:
        return False
