"""Checks of arguments: random keys, precision, parameters. This file does not import NumPyro."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_vd.common.options import as_number
from pyro_vd.common.options import kind_of as kind_of
from pyro_vd.numpyro._jax import is_traced

# Errors of a program that asks for the value of an array while it is traced, where there is none yet.
VALUE_TAKEN = (
    jax.errors.ConcretizationTypeError,  # of if, bool and float too
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@contextmanager
def compiled(owner: str) -> Iterator[None]:
    """A decorator of a function that compiles a user's program: TypeError where that takes the value of an array."""
    try:
        yield
    except VALUE_TAKEN as error:
        raise TypeError(
            f"{owner}: expected a model and guide that can be compiled, got one that asks for the value of an array "
            "(if array:, float(array), np.asarray(array)), which is not known before the program runs; write "
            "jnp.where or jax.lax.cond, or decide by a number of Python or by array.shape"
        ) from error


def require_key(owner: str, rng_key: Any) -> Array:
    """The key, or an error that names ``owner`` and says how to make one."""
    if is_key(rng_key):
        return rng_key
    raise ValueError(
        f"{owner}: expected a random key, got {'none' if rng_key is None else type(rng_key).__name__}; write "
        "jax.random.key(0) where it takes rng_key, or numpyro.handlers.seed(model, rng_seed=0)(...) around a model"
    )


def is_key(value: Any) -> bool:
    """Whether ``value`` is one random key of JAX: of ``jax.random.key``, or two numbers of ``jax.random.PRNGKey``."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    return value.shape == (2,) and value.dtype == np.uint32


def check_precision(owner: str, name: str, value: Any) -> None:
    """Raise where JAX would read a float64 array of NumPy or PyTorch as float32 silently."""
    if isinstance(value, (jax.Array, float)) or jax.config.read("jax_enable_x64"):
        return
    if str(getattr(value, "dtype", None)) in ("float64", "torch.float64"):
        raise ValueError(
            f"{owner}: expected {name} in float32, got float64 where JAX has 64-bit numbers switched off; write "
            'jax.config.update("jax_enable_x64", True) before anything of JAX is made, or give it in float32'
        )


def check_real(owner: str, name: str, value: Any) -> None:
    """TypeError for what no gradient step can move: an array of complex numbers, integers or truth values.

    The derivative of a real loss in a complex number is the conjugate of the way up, and optimizers step along it.
    """
    check_precision(owner, name, value)
    kind = getattr(value, "dtype", None) or np.dtype(type(value))
    if not (jnp.issubdtype(kind, jnp.floating) or (is_number(value) and not isinstance(value, jax.Array))):
        instead = "write it as two real arrays" if jnp.issubdtype(kind, jnp.complexfloating) else "write .astype(float)"
        raise TypeError(
            f"{owner}: expected {name} to be real and of floating point, got {kind}; {instead}, or keep what is not "
            "trained out of the parameters of the net"
        )


def is_number(value: Any) -> bool:
    """Whether a value counts as a number: of Python or NumPy, also in an array without dimensions; a whole one of JAX.

    It takes the precision of what it is used with. A floating point array of JAX has one of its own.
    """
    if isinstance(value, jax.Array):
        return value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer) and not is_traced(value)
    return as_number(value) is not None


def check_array(owner: str, name: str, value: Any, instead: str) -> None:
    """Raise for a value that JAX does not take as an array of numbers: tensors of PyTorch, text, lists, objects."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        if not (isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in "biufcV"):
            return
    check_precision(owner, name, value)
    raise TypeError(f"{owner}: expected {name} to be an array of JAX, got {kind_of(value)}; {instead}")


def check_program(owner: str, name: str, program: Any) -> None:
    """Raise unless a model or a guide can be called."""
    if callable(program) and not isinstance(program, type):
        return
    got = f"the class {program.__name__}" if isinstance(program, type) else kind_of(program)
    cure = f"{program.__name__}(model)" if isinstance(program, type) else "a function of the data"
    raise TypeError(f"{owner}: expected {name} to be a NumPyro program that can be called, got {got}; write {cure}")


def check_data(owner: str, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Raise for an argument of a model that is, or holds, a tensor of PyTorch."""
    for name, argument in (*enumerate(args), *kwargs.items()):
        for leaf in jax.tree.leaves(argument):
            if type(leaf).__module__.partition(".")[0] == "torch":
                raise TypeError(
                    f"{owner}: expected data argument {name!r} to hold arrays of JAX or NumPy, got {kind_of(leaf)}; "
                    "write jnp.asarray(x.detach().cpu().numpy())"
                )


def check_params(owner: str, params: Any) -> Mapping[str, Any]:
    """The parameters, or an error: a mapping from names to arrays, or to the state of a net."""
    if not isinstance(params, Mapping):
        got = "none" if params is None else kind_of(params)
        raise TypeError(
            f"{owner}: expected params to be a dict from names to arrays, got {got}; write "
            "params=svi.get_params(svi_state)"
        )
    for name, value in params.items():
        if not isinstance(name, str):
            raise TypeError(
                f"{owner}: expected the names in params to be text, got {name!r}; write svi.get_params(svi_state)"
            )
        if value is None:
            raise TypeError(
                f"{owner}: expected params[{name!r}] to be an array, got None; write svi.get_params(svi_state)"
            )
        for leaf in jax.tree.leaves(value):
            check_array(f"parameter {name!r}", "its value", leaf, "write svi.get_params(svi_state)")
    return params


def check_finite(owner: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters, or ValueError for NaN or infinity in one; values that are not known yet are skipped."""
    for name, value in params.items():
        for leaf in jax.tree.leaves(value):
            if is_traced(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                continue
            with jax.ensure_compile_time_eval():
                bad = int((~jnp.isfinite(leaf)).sum())
            if bad:
                raise ValueError(
                    f"{owner}: expected parameter {name!r} to be finite, got {bad} NaN or infinite of "
                    f"{jnp.size(leaf)}; take parameters from before training failed"
                )
    return params


def check_call(
    owner: str, rng_key: Any, params: Any, model: Any, guide: Any, args: tuple, kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The parameters; an error for a key, parameters, a program or data of a wrong kind."""
    require_key(owner, rng_key)
    check_program(owner, "model", model)
    check_program(owner, "guide", guide)
    check_data(owner, args, kwargs)
    return check_params(owner, params)


def check_names(owner: str, params: Mapping[str, Any], needed: Any, also: Any = ()) -> None:
    """Raise unless ``params`` has every name of ``needed``, and none that is neither there nor in ``also``."""
    missing = [name for name in needed if name not in params]
    if missing:
        raise ValueError(
            f"{owner}: expected params to hold every parameter of model and guide, got none named "
            f"{_some(missing)} among {sorted(params)}; write svi.get_params(svi_state), and for a net with a state "
            "{**svi.get_params(svi_state), **svi_state.mutable_state}"
        )
    unknown = [name for name in params if name not in needed and name not in also]
    if unknown:
        raise ValueError(
            f"{owner}: expected params to hold the parameters of model and guide alone, {sorted(needed)}, got "
            f"{_some(unknown)} as well; are they those of another guide or net? Leave out what is not used, or call "
            "numpyro.param for it on every path through the program"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
