"""The table itself: what an entry is, how a rule enters it and Quax, and how it is printed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import quax
from jax.extend.core import Primitive
from jax.typing import ArrayLike

from pyro_vd.common.reports import markdown_table
from pyro_vd.numpyro.estimators import LinearOp
from pyro_vd.numpyro.weights.random_weight import RandomWeight, sample, without_rule

KINDS = ("exact", "approximate")

Rule = Callable[..., LinearOp | None]
R = TypeVar("R", bound=Rule)


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        operations: the primitives it is for.
        rule: see :func:`register_rule`.
        weights: names of the operands that may be random.
        kind: "exact" or "approximate".
        drops: what "local" leaves out, in words.
    """

    operations: tuple[Primitive, ...]
    rule: Rule
    weights: tuple[str, ...]
    kind: str
    drops: str


TABLE: dict[Primitive, Entry] = {}


def register_rule(
    *operations: Primitive,
    weight: str | Collection[str] | None = None,
    kind: str = "exact",
    drops: str = "",
) -> Callable[[R], R]:
    """Make an operation known to random weights: a decorator for its rule.

    A rule has the operands of the primitive as positional parameters, and takes its parameters as keywords. It is
    called where one operand is a random weight, with a :class:`pyro_vd.numpyro.estimators.WeightNoise` in its place,
    and returns the call as a :class:`LinearOp`; or None where it does not cover these operands, which then uses one
    coherent draw, with a warning. A new rule of a primitive replaces its old one. What the operation multiplies the
    weight by must be in the ``x`` of the LinearOp, whose square makes the variance; otherwise give its
    ``apply_variance``. Functions of ``jax.numpy`` and of your own are made of primitives: they need no rule.

    Args:
        *operations: primitives of JAX: those of ``jax.lax`` (``lax.dot_general_p``), or your own.
        weight: names of the operands that may be random; None: those of "weight" and "bias" that the rule has.
        kind: "exact" where each output has its exact distribution, given the input, and outputs of one row
            of the input are independent in truth; "approximate" where the covariance of some of them is dropped.
        drops: what is dropped, for the table.

    Raises:
        TypeError: an operation that is not a primitive.
        ValueError: no operation given; unknown kind; a weight that is not a operand of the rule.

    Example:
        A layer of one's own, which computes its product in a primitive of its own:

        >>> import jax, jax.numpy as jnp, quax, pyro_vd.numpyro as vd
        >>> my_linear_p = Primitive("my_linear")
        >>> product = my_linear_p.def_impl(lambda x, w: x @ w.T)
        >>> shape = my_linear_p.def_abstract_eval(lambda x, w: jax.core.ShapedArray((len(x), len(w)), x.dtype))
        >>> @vd.register_rule(my_linear_p)
        ... def my_linear_rule(x, weight):
        ...     return vd.LinearOp(my_linear_p.bind, x, weight, weight_units=(1,), weight_outs=(0,),
        ...                        x_units=(1,), out_units=(1,), example=(0, 0))
        >>> noise = vd.DropoutNormal(jnp.ones((2, 3)), log_sigma2=-2.0).noise()
        >>> weight = vd.RandomWeight(noise, noise.variance, jax.random.key(0), vd.weights.WeightState("w"))
        >>> quax.quaxify(my_linear_p.bind)(jnp.zeros((5, 3)), weight).shape  # sampled locally
        (5, 2)
        >>> del vd.operations.TABLE[my_linear_p]

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.3, for what a rule describes.

    See also:
        :func:`pyro_vd.numpyro.operations_table`, :class:`pyro_vd.numpyro.LinearOp`.
    """
    if not operations:
        raise ValueError(
            "register_rule: expected the operations the rule is for, got none; write register_rule(lax.dot_general_p)"
        )
    if kind not in KINDS:
        raise ValueError(f"register_rule: expected kind to be 'exact' or 'approximate', got {kind!r}")
    for operation in operations:
        if not isinstance(operation, Primitive):
            raise TypeError(
                f"register_rule: expected an operation to be a primitive of JAX, got {operation!r}; functions are made "
                "of primitives and need no rule of their own, or name one: jax.lax.dot_general_p"
            )

    def register(rule: R) -> R:
        operands = _operands(rule)
        weights = (weight,) if isinstance(weight, str) else weight
        if weights is None:
            weights = [name for name in ("weight", "bias") if name in operands]
        unknown = [name for name in weights if name not in operands]
        if unknown or not weights:
            raise ValueError(
                f"register_rule: expected weight to name operands of {rule.__qualname__}, {operands}, got "
                f"{unknown or 'none'}; write weight={operands[-1:]}"
            )
        return enter(*operations, weight=tuple(weights), kind=kind, drops=drops)(rule)

    return register


def enter(*operations: Primitive, weight: tuple[str, ...], kind: str = "exact", drops: str = "") -> Callable[[R], R]:
    """As :func:`register_rule`, without its checks: for the rules of this package, whose tests make them."""

    def register(rule: R) -> R:
        operands = _operands(rule)
        TABLE.update(dict.fromkeys(operations, Entry(operations, rule, weight, kind, drops)))
        for operation in operations:
            for name in weight:
                _tell_quax(operation, operands.index(name), len(operands))
        return rule

    return register


def operations_table() -> str:
    """The table in Markdown: operation, weight argument, kind, what is dropped.

    Returns:
        One row for every rule, in the order of registration.

    Example:
        >>> print(operations_table().splitlines()[0])
        | operation | weight argument | under "local" | what is dropped |

    See also:
        :func:`pyro_vd.numpyro.register_rule`, :func:`pyro_vd.numpyro.lrt_report`.
    """
    entries = dict.fromkeys(TABLE.values())
    return markdown_table((tuple(o.name for o in e.operations), e.weights, e.kind, e.drops) for e in entries)


def _operands(rule: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in inspect.signature(rule).parameters.items() if p.kind in kinds]


def _tell_quax(primitive: Primitive, position: int, operands: int) -> None:
    """Have Quax ask the table wherever the operand at ``position`` is random, and no other one is."""

    def on(*values: Any, **params: Any) -> Any:
        weight = values[position]
        result = None
        if weight._repeated is None and primitive in TABLE:

            def build(x: Any, noise: Any) -> LinearOp | None:
                rule = TABLE[primitive].rule
                found = rule(*values[:position], noise, *values[position + 1 :], **params)
                if found is None or isinstance(found, LinearOp):
                    return found
                raise TypeError(
                    f"rule {rule.__qualname__} for {primitive.name}: expected a LinearOp or None, got "
                    f"{type(found).__name__}; write return LinearOp(apply, x, weight, ...)"
                )

            result = sample(build, None, weight, primitive.name)
        return without_rule(primitive, values, params) if result is None else result

    # Quax dispatches on the types in the signature.
    kinds: list[Any] = [RandomWeight if place == position else ArrayLike for place in range(operands)]
    positional = inspect.Parameter.POSITIONAL_ONLY
    parameters = [inspect.Parameter(f"operand_{i}", positional, annotation=kind) for i, kind in enumerate(kinds)]
    keywords = inspect.Parameter("params", inspect.Parameter.VAR_KEYWORD, annotation=Any)
    on.__signature__ = inspect.Signature([*parameters, keywords])  # type: ignore[attr-defined]
    on.__annotations__ = {p.name: p.annotation for p in (*parameters, keywords)}
    quax.register(primitive)(on)
