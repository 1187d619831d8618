"""Which parameters of a flax or equinox net are random unless the user says otherwise, and why."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from numpyro.distributions import Distribution

from pyro_vd.common.choice import LEAST_SHARE, as_where, layers_named, matching
from pyro_vd.common.reports import ModuleReport, ParameterRow
from pyro_vd.numpyro.nets import Net, is_layer

Where = Callable[[str, Any], bool] | type | str | tuple | list | None


def choose(net: Net, where: Where) -> dict[str, str]:
    """The random parameters of a net, in their order, each with the reason in words.

    Args:
        net: the net.
        where: as in :class:`pyro_vd.numpyro.BayesianModule`.

    Raises:
        ValueError: none is chosen; a name or pattern that matches nothing.
        TypeError: a ``where`` of another type.
    """
    parameters, owners = list(net.parameters), net.owners

    def of_types(types: tuple[type, ...]) -> set[str]:
        return {n for n in parameters if is_layer(owners[n], types) and _is_weight(net, n, "weight", "kernel")}

    if where is None:
        chosen = {n: f"{n.rpartition('.')[2]} of {_layer(net, n)}" for n in parameters if _is_weight(net, n)}
    else:
        chosen = matching(where, parameters, owners, of_types, kind="layer")
    if not chosen:
        raise ValueError(
            f"where: expected at least one parameter to be random, got none of {parameters}; choose with "
            f"where={next(iter(net.weights))[0].__name__}, where={parameters[:1]} or where=lambda name, layer: ..."
        )
    return chosen


def say_what_is_left_out(net: Net, chosen: list[str], name: str) -> None:
    """Warn where most of the matrices belong to layers of which no weight is known."""
    matrices = {n: one.size for n, one in net.parameters.items() if one.ndim > 1}
    left_out = [n for n in matrices if n not in chosen]
    share = sum(matrices[n] for n in chosen if n in matrices) / max(sum(matrices.values()), 1)
    if not chosen or share >= LEAST_SHARE:
        return
    layers: dict[str, list[str]] = {}
    for one in left_out:
        layers.setdefault(_layer(net, one), []).append(one.rpartition(".")[0])
    others = [n for n in net.parameters if n not in matrices and n not in chosen]
    warnings.warn(
        f"BayesianModule {name!r}: expected the matrices of the net to be random, got {share:.1%} of their elements; "
        f"deterministic are those of {layers_named(layers)}, layers of which no weight is known; write "
        f"where={as_where([*chosen, *left_out], others)} to make them random too, "
        f"where={as_where(chosen, [*others, *left_out])} for this choice without the warning. print(bnn.report()) "
        "shows every parameter",
        stacklevel=4,  # the line that makes the BayesianModule
    )


def report_of(net: Net, priors: Mapping[str, Distribution], why: Mapping[str, str], where: Where) -> ModuleReport:
    """The report of a net.

    Args:
        net: the net.
        priors: those of its random parameters.
        why: what :func:`choose` returned for ``where``.
    """
    rows = []
    for name, parameter in net.parameters.items():
        random = name in priors
        said = why[name] if random else _why_not(net, name, where)
        said += "; one draw for all steps of a sequence" if random and name in net.recurrent else ""
        kind, prior = ("random", _words(priors[name])) if random else ("deterministic", "")
        rows.append(ParameterRow(name, _layer(net, name), tuple(parameter.shape), kind, said, prior))
    return ModuleReport(tuple(rows))


def _why_not(net: Net, name: str, where: Where) -> str:
    if where is not None:
        return "not in where="
    if net.parameters[name].ndim < 2:
        return "a bias or a gain" if net.parameters[name].ndim else "a scalar"
    return f"no weight of {_layer(net, name)} is known"


def _layer(net: Net, name: str) -> str:
    """The class of the layer that a parameter belongs to."""
    owner = net.owners[name]
    return owner.__name__ if isinstance(owner, type) else type(owner).__name__


def _is_weight(net: Net, name: str, *otherwise: str) -> bool:
    """Whether a parameter is the weight of its layer; that of an unknown layer is called ``otherwise``."""
    leaf, known = name.rpartition(".")[2], net.weight_of(name)
    return leaf in otherwise if known is None else fnmatch.fnmatchcase(leaf, known)


def _words(prior: Distribution) -> str:
    """A prior as Pyro prints it: its name, and the parameters that are one number."""
    values = {name: getattr(prior, name, None) for name in prior.arg_constraints}
    numbers = [f"{name}: {float(one)}" for name, one in values.items() if one is not None and _is_number(one)]
    return f"{type(prior).__name__}({', '.join(numbers)})"


def _is_number(value: Any) -> bool:
    return getattr(value, "size", 1) == 1
