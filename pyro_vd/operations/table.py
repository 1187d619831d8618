"""The table itself: what an entry is, how a rule enters it, and how it is printed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from pyro_vd._torch import full_name, parameters_of
from pyro_vd.common.options import check_callable, shown
from pyro_vd.common.reports import markdown_table
from pyro_vd.estimators import LinearOp

_BY_PLACE = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
_VARIABLE = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
KINDS = ("exact", "approximate", "coherent draw")

Rule = Callable[..., LinearOp | Callable[[], Any] | None]
R = TypeVar("R", bound=Rule)

_SYMBOLS = {"__matmul__": "@", "__rmatmul__": "@", "__add__": "+", "__radd__": "+", "__mul__": "*", "__rmul__": "*"}


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        operations: the functions it is for.
        rule: see :func:`register_rule`; None for a coherent draw.
        weights: names of the arguments that may be random.
        kind: one of "exact", "approximate", "coherent draw".
        drops: what "local" leaves out, in words.
        signature: that of the rule.
    """

    operations: tuple[Callable[..., Any], ...]
    rule: Rule | None
    weights: tuple[str, ...]
    kind: str
    drops: str
    signature: inspect.Signature | None = None

    @functools.cached_property
    def least(self) -> int:
        """With so many arguments by place, and ``most`` at most, a call fits the signature."""
        assert self.signature is not None
        return sum(p.default is p.empty for p in self.signature.parameters.values() if p.kind not in _VARIABLE)

    @functools.cached_property
    def most(self) -> int:
        assert self.signature is not None
        return sum(p.kind in _BY_PLACE for p in self.signature.parameters.values())

    def __call__(self, operation: str, args: tuple, kwargs: dict) -> LinearOp | Callable[[], Any] | None:
        """What the rule says of a call; None where it does not cover its arguments."""
        assert self.rule is not None and self.signature is not None
        if kwargs.get("out", 0) is None:
            kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        if kwargs or not self.least <= len(args) <= self.most:
            try:
                self.signature.bind(*args, **kwargs)
            except TypeError:
                return None
        result = self.rule(*args, **kwargs)
        if result is None or isinstance(result, LinearOp) or callable(result):
            return result
        raise TypeError(
            f"rule {full_name(self.rule)} for {operation}: expected a LinearOp, a function without arguments or None, "
            f"got {type(result).__name__}; write return LinearOp(apply, x, weight, bias)"
        )


TABLE: dict[Callable[..., Any], Entry] = {}


def register_rule(
    *operations: Callable[..., Any],
    weight: str | Collection[str] | None = None,
    kind: str = "exact",
    drops: str = "",
) -> Callable[[R], R]:
    """Make an operation known to random weights: a decorator for its rule.

    A rule has the parameters of the operation (it may leave out optional ones: a call that gives them is not covered)
    and is called in its place where an argument is a random weight. It returns the call as a :class:`LinearOp`; or a
    function without arguments that computes the result by operations of the table; or None where it does not cover
    these arguments, which then uses one coherent draw, with a warning. A rule of an operation that has one
    replaces it. What the operation multiplies the weight by must be in the ``x`` of the LinearOp, whose square makes
    the variance; otherwise give its ``apply_variance``.

    Args:
        *operations: functions that PyTorch dispatches on the type of their arguments: those of ``torch`` and of
            ``torch.Tensor``, or a function of yours that calls ``torch.overrides.handle_torch_function``.
        weight: names of the parameters that may be random; None: those of "weight" and "bias" that the rule has.
        kind: "exact" where each output has its exact distribution, given the input, and outputs of one row
            of the input are independent in truth; "approximate" where the covariance of some of them is dropped.
        drops: what is dropped, for the table of operations.

    Raises:
        TypeError: a rule whose parameters are not those of the operation; an operation that is not a function.
        ValueError: no operation given; unknown kind; a weight that is not a parameter of the rule.

    Example:
        A layer of one's own, which computes its product in a way that no operation of PyTorch does:

        >>> import pyro, torch, pyro_vd as vd
        >>> from torch.overrides import handle_torch_function, has_torch_function
        >>> def my_linear(input, weight):
        ...     if has_torch_function((input, weight)):
        ...         return handle_torch_function(my_linear, (input, weight), input, weight)
        ...     return torch.stack([input @ row for row in weight], -1)
        >>> @vd.register_rule(my_linear)
        ... def my_linear_rule(input, weight):
        ...     return vd.LinearOp(lambda x, w, bias: my_linear(x, w), input, weight)
        >>> with vd.lrt():
        ...     weight = pyro.sample("w", vd.DropoutNormal(torch.ones(2, 3), log_sigma2=-2.0).to_event(2))
        >>> my_linear(torch.zeros(5, 3), weight).shape  # sampled locally
        torch.Size([5, 2])
        >>> del vd.operations.TABLE[my_linear]

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.3, for what a rule describes.

    See also:
        :func:`pyro_vd.operations_table`, :class:`pyro_vd.LinearOp`.
    """
    if not operations:
        raise ValueError(
            "register_rule: expected the operations the rule is for, got none; write register_rule(F.linear)"
        )
    if not isinstance(kind, str) or kind not in KINDS[:2]:
        raise ValueError(f"register_rule: expected kind to be 'exact' or 'approximate', got {shown(kind)}")
    given = (weight,) if isinstance(weight, str) else weight
    if given is not None and not (isinstance(given, Collection) and all(isinstance(one, str) for one in given)):
        raise TypeError(
            f"register_rule: expected weight to be the name of a parameter of the rule, or several, got {shown(weight)}"
            "; write weight='weight'"
        )

    def register(rule: R) -> R:
        check_callable("rule", rule, "a function", "write def rule(input, weight): ...", "register_rule")
        weights = given
        if weights is None:
            weights = [name for name in ("weight", "bias") if name in inspect.signature(rule).parameters]
        for operation in operations:
            check_signature(rule, operation, tuple(weights))
        return enter(*operations, weight=weights, kind=kind, drops=drops)(rule)

    return register


def enter(
    *operations: Callable[..., Any], weight: Collection[str] = ("weight", "bias"), kind: str = "exact", drops: str = ""
) -> Callable[[R], R]:
    """As :func:`register_rule`, without its checks: for the rules of this package, whose tests make them."""

    def register(rule: R) -> R:
        entry = Entry(operations, rule, tuple(weight), kind, drops, inspect.signature(rule))
        TABLE.update(dict.fromkeys(operations, entry))
        return rule

    return register


def coherent(*operations: Callable[..., Any], weight: Collection[str], drops: str) -> None:
    """Enter operations whose meaning asks for one draw of the weight for the rest of the trace, without a warning."""
    TABLE.update(dict.fromkeys(operations, Entry(operations, None, tuple(weight), "coherent draw", drops)))


def operations_table() -> str:
    """The table in Markdown: operation, weight argument, kind, what is dropped.

    Returns:
        One row for every rule, in the order of registration.

    Example:
        >>> print(operations_table().splitlines()[0])
        | operation | weight argument | under "local" | what is dropped |

    See also:
        :func:`pyro_vd.register_rule`, :func:`pyro_vd.lrt_report`.
    """
    rows = []
    shown: set[str] = set()
    for entry in dict.fromkeys(TABLE.values()):
        new = [name for name in dict.fromkeys(map(_short_name, entry.operations)) if name not in shown]
        shown.update(new)
        if not new:
            continue  # the reflected form of an operator
        rows.append((tuple(new), entry.weights, entry.kind, entry.drops))
    return markdown_table(rows)


def check_signature(rule: Callable[..., Any], operation: Any, weights: tuple[str, ...]) -> None:
    """Raise unless every argument of the rule is the operation's argument of the same name and place."""
    if not callable(operation):
        raise TypeError(f"register_rule: expected an operation to be a function, got {operation!r}")
    own = inspect.signature(rule).parameters
    variable = {p.kind for p in own.values()} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    unknown = [name for name in weights if name not in own]
    if unknown and not variable:
        raise ValueError(
            f"register_rule: expected weight to name parameters of {full_name(rule)}, {list(own)}, got {unknown}"
        )
    theirs = parameters_of(operation)
    if theirs is None or variable:
        return
    names = [next(iter(own), name) if name == "self" else name for name in theirs]
    required = [name for name, p in zip(names, theirs.values(), strict=True) if p.default is p.empty]
    places = [name for name, p in own.items() if p.kind is not p.KEYWORD_ONLY]
    in_place = places == names[: len(places)]
    obliges = [name for name in places if own[name].default is inspect.Parameter.empty and name not in required]
    if not in_place or obliges or not set(required) <= set(own):
        raise TypeError(
            f"register_rule: expected {full_name(rule)} to have the parameters of {full_name(operation)}, "
            f"({', '.join(map(str, theirs.values()))}), got {inspect.signature(rule)}; write the same names in the same"
            " order, with a default where the operation has one (optional ones may be left out at the end)"
        )


def _short_name(operation: Any) -> str:
    name = getattr(operation, "__name__", str(operation))
    return _SYMBOLS.get(name, name.strip("_"))
