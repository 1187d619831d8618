"""Options of automatic guides, by their names: those of both backends are the same, and so are their checks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from pyro_vd.common.choice import matcher, unmatched
from pyro_vd.common.options import (
    KL_METHODS,
    check_callable,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_threshold,
    is_scalar,
    shown,
)

F = TypeVar("F", bound=Callable[..., Any])


def checked_options(init: F) -> F:
    """A decorator for the constructor of a guide: its options are checked before they are used.

    Raises:
        ValueError, TypeError: an invalid option, which the error names.
    """

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(init).bind(self, *args, **kwargs).arguments
        given |= given.pop("options", {})
        for name, value in given.items():
            if name in _CHECKS:
                _CHECKS[name](name, value)
        init(self, *args, **kwargs)

    return checked  # type: ignore[return-value]


def check_parts(model: Any, guides: tuple[Any, ...], automatic: type) -> None:
    """TypeError unless there are a model and at least one guide to be mixed, and each can be called.

    Args:
        model, guides: to be mixed.
        automatic: the class of automatic guides, none of which is a model.
    """
    if not guides or isinstance(model, automatic):
        got = f"the guide {type(model).__name__} in its place" if isinstance(model, automatic) else "none"
        raise TypeError(
            f"mixed_guide: expected one guide or more after the model, got {got}; write mixed_guide(model, "
            "AutoSparseVD(model, where='net.0.*'), AutoMeanField(model, where='net.1.*'))"
        )
    for guide in guides:
        check_callable("guide", guide, "automatic guides", "write AutoSparseVD(model, where='net.0.*')", "mixed_guide")


def check_where(name: str, where: Any) -> None:
    """TypeError unless ``where`` is None, a name or pattern, several, or a function of names."""
    if where is None or isinstance(where, str) or (callable(where) and not isinstance(where, type)):
        return
    several = isinstance(where, Iterable) and not isinstance(where, (str, bytes, type)) and not is_scalar(where)
    names: list[Any] = list(where) if several else []  # type: ignore[arg-type]
    if names and all(isinstance(one, str) for one in names):
        return
    raise TypeError(
        f"{name}: expected site names or patterns, or a function of names, got {shown(where)}; write where='net.0.*' "
        "or where=lambda site: ..."
    )


def check_site(site: Any, weights: Collection[str]) -> str:
    """The name of a site, or ValueError unless it is one of the ``weights`` of a guide."""
    if not isinstance(site, str) or site not in weights:
        raise ValueError(f"site: expected one of the weight sites {list(weights)}, got {shown(site)}")
    return site


def sites_to_set(
    quantity: Any, learnable: Any, where: Any, weights: Collection[str], quantities: Collection[str]
) -> list[str]:
    """The sites that ``set_learnable`` is asked for, of the ``weights`` of a guide with these ``quantities``.

    Raises:
        ValueError: no such quantity; a name or pattern that matches no weight.
        TypeError: ``learnable`` is no truth value; ``where`` is no choice of sites.
    """
    check_flag("learnable", learnable)
    check_where("where", where)
    if not isinstance(quantity, str) or quantity not in quantities:
        raise ValueError(f"set_learnable: expected one of {sorted(quantities)}, got {shown(quantity)}")
    sites = [site for site in weights if where is None or matcher(where)(site)]
    if lost := unmatched(where, weights) or ([] if sites else where):
        raise ValueError(f"set_learnable: expected where= to match one of {list(weights)}, got {lost!r}")
    return sites


def moving_support(site: str, distribution: str, on: str) -> str:
    """The error for a latent site whose bounds move with other sites or parameters; a guide has them fixed."""
    return (
        f"site {site!r}: expected a latent site whose support is always the same, got {distribution} with bounds that "
        f"depend on {on}, which a mean-field guide cannot follow; sample it on a fixed support and map it there, as "
        f"sample('{site}_unit', dist.Uniform(0.0, 1.0)) times its bound, or give the guide where= and write a guide of "
        "this site by hand"
    )


def _check_model(name: str, model: Any) -> None:
    check_callable(name, model, "a model, a function or module", "write def model(x, y=None): ..., or BayesianModule")


def _check_function(name: str, value: Any) -> None:
    check_callable(name, value, "a function of a site", "write one that returns the value to start from")


def _check_prefix(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, for the names of the parameters, got {shown(value)}; write 'auto'")


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], None]:
    def checked(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return checked


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "model": _check_model,
    "where": check_where,
    "init_loc_fn": _check_function,
    "create_plates": _or_none(_check_function),
    "prefix": _check_prefix,
    "init_log_sigma2": check_number,
    "init_log_alpha": functools.partial(check_number, at_most=0, why="alpha <= 1"),
    "temperature": functools.partial(check_number, above=0),
    "zero_above": _or_none(check_threshold),
    "unit_dim": check_count,
    "rank": check_count,
    "correlated": check_flag,
    "kl": functools.partial(check_choice, choices=KL_METHODS),
}


def check_made(guide: Any) -> None:
    """TypeError for the class of a guide in its place."""
    if isinstance(guide, type):
        raise TypeError(f"expected a guide, got the class {guide.__name__}; write {guide.__name__}(model)")
