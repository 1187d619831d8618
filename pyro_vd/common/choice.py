"""Which parameters of a net are random, and under which prior: what needs no array library.

A choice is made with layer types, parameter names, patterns of names, or one function.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pyro_vd.common.options import kind_of, shown

LEAST_SHARE = 0.5  # of the elements of matrices; below it the layers left out are named
_LAYERS_NAMED = 8  # in a message
_OWNERS = ("module", "layer", "owner")  # names of the third argument of a prior


def matcher(where: Any) -> Callable[[str], bool]:
    """Names, patterns or a predicate, as a predicate on names."""
    if callable(where):
        return where  # type: ignore[return-value]
    patterns = [where] if isinstance(where, str) else list(where)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def unmatched(where: Any, names: Collection[str]) -> list[str]:
    """The names and patterns of ``where`` that match none of the ``names``; a function, or None, has none."""
    patterns = [] if where is None or callable(where) else [where] if isinstance(where, str) else list(where)
    return [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]


def check_matched(owner: str, where: Any, sites: Collection[str]) -> None:
    """ValueError for a name or pattern of ``where`` that matches none of the latent sites of a model."""
    if lost := unmatched(where, sites):
        raise ValueError(
            f"{owner}: expected a latent site that matches where, got the sites {list(sites)}; name the weights with "
            f"where=, of which {lost} match none"
        )


def matching(
    where: Any,
    parameters: Sequence[str],
    owners: Mapping[str, Any],
    of_types: Callable[[tuple[type, ...]], Collection[str]],
    frozen: Collection[str] = (),
    kind: str = "module",
) -> dict[str, str]:
    """The parameters that ``where`` chooses, in their order, each with the reason in words.

    Args:
        where: a type or several; a name or pattern, or several; or one function ``(name, owner) -> bool``.
        parameters: names of all parameters of the net.
        owners: what the function is given beside the name.
        of_types: names of the weights of the layers of some types.
        frozen: parameters that only their full name or the function can choose.
        kind: what a layer is called: "module" or "layer".

    Raises:
        ValueError: a name or pattern that matches nothing, or a type beside others that do.
        TypeError: anything else.
    """
    several: list[Any] = list(where) if isinstance(where, (tuple, list)) else [where]
    if len(several) == 1 and _is_function(several[0]):
        return {name: "where=, a function" for name in parameters if several[0](name, owners[name])}
    if not several or not any(all(isinstance(one, sort) for one in several) for sort in (str, type)):
        raise TypeError(
            f"where: expected {kind} types, parameter names or one callable, got {shown(where)}; write where='0.*', or "
            f"where=lambda name, {kind}: ..."
        )
    if lost := unmatched([one for one in several if isinstance(one, str)], parameters):
        raise ValueError(f"where: expected parameter names or patterns of {list(parameters)}, got {lost}")
    weights = {one: set(of_types((one,))) for one in several if isinstance(one, type)}
    chosen = {}
    for name in parameters:
        for one in several:
            if name in weights[one] if isinstance(one, type) else _is_named(name, one, frozen):
                chosen[name] = f"where={one.__name__ if isinstance(one, type) else repr(one)}"
                break
    lost = [one.__name__ for one, found in weights.items() if not found]
    if chosen and lost:  # where nothing at all is chosen, the caller says what there is
        raise ValueError(
            f"where: expected types of {kind}s with trained weights in this net, got {lost}, of which it has none; "
            "leave them out"
        )
    return chosen


def _is_function(value: Any) -> bool:
    """Whether a value can be called and is no class, and no layer of a net."""
    return callable(value) and not isinstance(value, type) and not hasattr(value, "named_parameters")


def prior_for(
    prior: Any, name: str, parameter: Any, owner: Any, is_layer: Callable[[Any, tuple[type, ...]], bool], family: type
) -> Any:
    """The prior of one parameter.

    Args:
        prior: a distribution; a mapping from names, patterns and layer types, of which the first match counts; or a
            function of name and parameter, and of the owner where it takes three arguments.
        name: of the parameter.
        parameter: its value.
        owner: the layer it belongs to.
        is_layer: whether an owner is of some types.
        family: the base class of the distributions of the library.

    Raises:
        ValueError: no prior for this parameter; a distribution that does not expand to its shape.
        TypeError: not a distribution.
    """
    library = family.__module__.partition(".")[0].replace("numpyro", "NumPyro").replace("pyro", "Pyro")
    advice = f"write {library.lower()}.distributions.Normal(0.0, 1.0)"
    if isinstance(prior, Mapping):
        for key in prior:
            if not isinstance(key, (str, type)):
                raise TypeError(
                    f"prior: expected names or patterns of parameters, or types of layers, for keys, got {shown(key)}; "
                    "write '0.weight' or '*'"
                )
        found = next((value for key, value in prior.items() if _is_keyed(name, owner, key, is_layer)), None)
        if found is None:
            keys = [key if isinstance(key, str) else key.__name__ for key in prior]
            raise ValueError(
                f"prior: expected a prior for parameter {name!r}, got priors for {keys} only; give it one, as "
                f"{{{name!r}: ...}}, or all others, as {{..., '*': ...}}"
            )
    elif isinstance(prior, family):
        found = prior
    elif callable(prior) and not isinstance(prior, type):
        found = prior(name, parameter, owner) if _takes_owner(prior) else prior(name, parameter)
    else:
        raise TypeError(
            f"prior: expected a {library} distribution, a mapping of names to them or a function, got "
            f"{shown(prior)}; {advice}"
        )
    if not isinstance(found, family):
        raise TypeError(
            f"prior: expected a {library} distribution for parameter {name!r}, got {kind_of(found)}; {advice}"
        )
    _check_shape(found, name, tuple(parameter.shape))
    return found


def check_prior_keys(prior: Any, owners: Mapping[str, Any], is_layer: Callable[[Any, tuple[type, ...]], bool]) -> None:
    """Raise where a key of a mapping of priors matches none of the random parameters.

    Args:
        prior: as the user gave it.
        owners: the layer of each random parameter.
        is_layer: whether an owner is of some types.

    Raises:
        ValueError: such a key.
    """
    if not isinstance(prior, Mapping):
        return
    unmatched = [
        key if isinstance(key, str) else key.__name__
        for key in prior
        if not any(_is_keyed(name, owner, key, is_layer) for name, owner in owners.items())
    ]
    if unmatched:
        raise ValueError(
            f"prior: expected names or patterns of the random parameters {list(owners)}, or types of their layers, got "
            f"{unmatched}, which match none; correct or remove them, or make more parameters random with where="
        )


def as_where(names: Iterable[str], others: Collection[str]) -> str:
    """What to write after ``where=`` to choose these parameters and none of the others: patterns if they suffice."""
    patterns: dict[str, None] = {}
    for name in names:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        patterns.setdefault(name if fnmatch.filter(others, pattern) else pattern)
    written = [repr(pattern) for pattern in patterns]
    return written[0] if len(written) == 1 else f"({', '.join(written)})"


def layers_named(layers: Mapping[str, Sequence[str]]) -> str:
    """Classes and paths of layers in words; of many, the first.

    Args:
        layers: class -> paths.
    """
    parts = []
    for kind, paths in layers.items():
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        parts.append(f"{kind} ({', '.join(map(repr, paths[:3]))}{more})")
    more = len(parts) - _LAYERS_NAMED
    return ", ".join(parts[:_LAYERS_NAMED]) + (f" and {more} more classes" if more > 0 else "")


def _is_named(name: str, pattern: str, frozen: Collection[str]) -> bool:
    return name == pattern or (name not in frozen and fnmatch.fnmatchcase(name, pattern))


def _is_keyed(name: str, owner: Any, key: Any, is_layer: Callable[[Any, tuple[type, ...]], bool]) -> bool:
    return fnmatch.fnmatchcase(name, key) if isinstance(key, str) else is_layer(owner, (key,))


def _takes_owner(prior: Callable[..., Any]) -> bool:
    """Whether a function has a place for a third argument that is not a default of its own."""
    try:
        parameters = list(inspect.signature(prior).parameters.values())
    except (TypeError, ValueError):
        return False
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(places) > 2 and (places[2].default is places[2].empty or places[2].name in _OWNERS)


def _check_shape(prior: Any, name: str, shape: tuple[int, ...]) -> None:
    if prior.event_shape:
        raise ValueError(
            f"prior: expected a distribution of single weights for parameter {name!r}, got one with events of shape "
            f"{tuple(prior.event_shape)}; leave out to_event, which is added"
        )
    try:
        prior.expand(shape)
    except (RuntimeError, ValueError):
        raise ValueError(
            f"prior: expected a distribution that expands to the shape {shape} of parameter {name!r}, got one of shape "
            f"{tuple(prior.batch_shape)}; write one for all weights, or sizes that broadcast"
        ) from None
