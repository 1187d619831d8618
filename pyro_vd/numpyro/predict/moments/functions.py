"""Functions under ``jax.jit`` on a Gaussian: one of each element by quadrature of the whole, others step by step.

``jax.nn`` makes its activations of primitives: ``silu`` is ``x * logistic(x)``, whose factors are not independent.
Under ``jax.jit`` it is one function, whose body says that it is of each element by itself. One with a pole, or that is
not defined everywhere, goes step by step, to the operation that has no moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import quax
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jax.typing import ArrayLike

from pyro_vd.numpyro._jax import jit_p, remat_p, stop_gradient_p
from pyro_vd.numpyro.predict.moments.elementwise import SMOOTH, through
from pyro_vd.numpyro.predict.moments.gaussian import GaussianArray, UnknownOperation
from pyro_vd.numpyro.predict.moments.ranges import is_defined

# Primitives that give each element of their result from the elements at its place.
_ELEMENTWISE = {
    *SMOOTH, stop_gradient_p, lax.add_p, lax.sub_p, lax.mul_p, lax.div_p, lax.neg_p, lax.exp_p, lax.log_p, lax.max_p,
    lax.min_p, lax.abs_p, lax.sign_p, lax.sqrt_p, lax.rsqrt_p, lax.square_p, lax.integer_pow_p, lax.pow_p,
    lax.select_n_p, lax.ge_p, lax.gt_p, lax.le_p, lax.lt_p, lax.eq_p, lax.ne_p, lax.is_finite_p, lax.and_p, lax.or_p,
    lax.not_p, lax.clamp_p, lax.convert_element_type_p, lax.copy_p,
}  # fmt: skip


@quax.register(jit_p, precedence=2)
def _(*args: ArrayLike | GaussianArray, **params: Any):
    random = [i for i, one in enumerate(args) if isinstance(one, GaussianArray)]
    if not random:
        return jit_p.bind(*args, **params)
    body = params["jaxpr"]
    place = random[0]
    alone = len(random) == 1 and _is_of_each_element(body, random) and _nonlinear_steps(body) > 1
    if alone and is_defined(body, args, place):
        x: Any = args[place]

        def function(value: Array) -> Array:
            return jaxpr_as_fun(body)(*args[:place], value, *args[place + 1 :])[0]

        return [through(x, function)]
    return _step_by_step(body, args, params["name"], random)


def _step_by_step(body: Any, args: Sequence[Any], name: str, random: list[int]) -> Any:
    """The body of a function; at one draw of its only Gaussian argument where it has an operation without a rule."""
    of, steps = args[random[0]].of, jaxpr_as_fun(body)
    if of.on_unknown == "sample" and len(random) == 1:
        of.on_unknown = "error"  # the function as a whole is unknown: draws of its parts belong together
        try:
            return quax.quaxify(steps)(*args)
        except UnknownOperation:
            draw = args[random[0]].draws(1, of.next_key(name))[0]
            return steps(*(draw if i in random else one for i, one in enumerate(args)))
        finally:
            of.on_unknown = "sample"
    return quax.quaxify(steps)(*args)


@quax.register(remat_p, precedence=2)
def _(*args: ArrayLike | GaussianArray, jaxpr: Any, **params: Any):
    """``jax.checkpoint``: a prediction has no gradient."""
    return quax.quaxify(jaxpr_as_fun(ClosedJaxpr(jaxpr, ())))(*args)


def _is_of_each_element(body: Any, places: list[int]) -> bool:
    """Whether a body has one result, of the shape of some arguments, made of their elements each by itself."""
    jaxpr = body.jaxpr
    known = {jaxpr.invars[place] for place in places}  # what depends on the arguments
    (shape, *others) = {v.aval.shape for v in known}
    if len(jaxpr.outvars) != 1 or others:
        return False
    for equation in jaxpr.eqns:
        inside = [i for i, v in enumerate(equation.invars) if not isinstance(v, Literal) and v in known]
        if not inside:
            continue
        inner = _inner(equation)
        if inner is not None:
            fits = _is_of_each_element(inner, inside)
        else:
            others = [v for i, v in enumerate(equation.invars) if i not in inside]
            fits = equation.primitive in _ELEMENTWISE and all(v.aval.shape in ((), shape) for v in others)
        if not fits or any(v.aval.shape != shape for v in equation.outvars):
            return False
        known.update(equation.outvars)
    (out,) = jaxpr.outvars
    return not isinstance(out, Literal) and out in known and out.aval.shape == shape


def _inner(equation: Any) -> Any:
    """The body of a call; None of another operation."""
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return inner if hasattr(inner, "jaxpr") else None


_LINEAR = {lax.neg_p, lax.convert_element_type_p, lax.copy_p, stop_gradient_p}


def _nonlinear_steps(body: Any) -> int:
    """How many operations a body has, those inside its calls too: of a single one there is a closed form."""
    number = 0
    for equation in body.jaxpr.eqns:
        inner = _inner(equation)
        number += int(equation.primitive not in _LINEAR) if inner is None else _nonlinear_steps(inner)
    return number
