"""The parameters of a guide: their names, where they start, which of them are constants, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pyro_vd.numpyro.arguments import check_params, check_real

Params = Mapping[str, Any]


class Parameters:
    """Named ``f"{prefix}.{quantity}.{site}"``; the user keeps the values that are trained.

    Args:
        guide: class name of the guide, for errors.
        prefix: of the names.

    Attributes:
        starts: where each begins; the value of those that are constants.
        fixed: the names of the constants.
    """

    def __init__(self, guide: str, prefix: str):
        self.guide, self.prefix = guide, prefix
        self.starts: dict[str, Array] = {}
        self.fixed: set[str] = set()
        self._chosen: dict[str, bool] = {}  # by set_learnable, kept when the parameters are made again
        self._kept: dict[str, Array] = {}

    def name(self, quantity: str, site: str) -> str:
        return f"{self.prefix}.{quantity}.{site}"

    @property
    def quantities(self) -> set[str]:
        return {name[len(self.prefix) + 1 :].partition(".")[0] for name in self.starts}

    @property
    def learned(self) -> dict[str, Array]:
        """Those that are trained, where they start."""
        return {name: value for name, value in self.starts.items() if name not in self.fixed}

    def store(self, quantity: str, site: str, value: Array, learnable: bool) -> None:
        """Start a parameter, or keep a constant; an earlier choice of ``set_learnable`` holds."""
        name = self.name(quantity, site)
        self.starts[name] = self._kept.get(name, value)
        if not self._chosen.get(name, learnable):
            self.fixed.add(name)

    def set_learnable(self, quantity: str, sites: Collection[str], learnable: bool, params: Params | None) -> None:
        if params is not None:
            check_params(f"{self.guide}.set_learnable", params)
            self._kept |= {name: params[name] for name in self.starts if name in params}
            self.starts |= self._kept
        for site in sites:
            name = self.name(quantity, site)
            self._chosen[name] = learnable
            self.fixed.discard(name) if learnable else self.fixed.add(name)

    def read(self, params: Params, quantity: str, site: str) -> Array:
        """The value in ``params``, or the constant.

        Raises:
            ValueError: it is not there, or has another shape.
            TypeError: it is not real and of floating point.
        """
        name = self.name(quantity, site)
        if name not in self.fixed and name not in params:
            raise ValueError(
                f"params: expected the parameters of this {self.guide}, with {name!r}, got {sorted(params)}; "
                "write svi.get_params(svi_state)"
            )
        value = self.starts[name] if name in self.fixed else params[name]
        check_real(f"parameter {name!r}", "its value", value)
        if jnp.shape(value) != jnp.shape(self.starts[name]):
            raise ValueError(
                f"parameter {name!r}: expected a value of shape {jnp.shape(self.starts[name])}, as this guide starts "
                f"it, got {jnp.shape(value)}; give the parameters that were trained with this net and guide"
            )
        return value

    def check_family(self, params: Params, sites: Collection[str]) -> None:
        """Raise for a quantity of one of the sites that the guide does not have: of another family."""
        for name in params:
            quantity, _, site = name.removeprefix(f"{self.prefix}.").partition(".")
            if name.startswith(f"{self.prefix}.") and site in sites and name not in self.starts:
                raise ValueError(
                    f"params: expected of each weight the parameters of {self.guide}, {sorted(self.quantities)}, got "
                    f"{name!r} as well; are they those of another family of guides?"
                )

    def check_seen(self, params: Params, sites: Collection[str], where: Callable[[str], bool] | None) -> None:
        """Raise for the parameters of a site that a guide, which knows some sites without a call, does not know."""
        for name in params:
            quantity, _, site = name.removeprefix(f"{self.prefix}.").partition(".")
            is_ours = quantity in self.quantities and (where is None or where(site))
            if name.startswith(f"{self.prefix}.") and is_ours and site not in sites:
                raise ValueError(
                    f"params: expected the parameters of the weights {list(sites)}, which this {self.guide} found in "
                    f"the nets of its model, got {name!r} as well; call svi.init(rng_key, *args) with the arguments of "
                    "the model once, so that the guide sees all sites"
                )

    def check_no_other(self, params: Params) -> None:
        """Raise for the parameters of a site beside the weights, which a guide knows from a call alone."""
        unseen = [name for name in params if name.endswith(f"_{self.prefix}_loc")]
        if unseen:
            raise ValueError(
                f"{self.guide}: expected a guide that has seen its model once, got a new one and {unseen} among the "
                "parameters; call svi.init(rng_key, *args) with the arguments of the model first"
            )


def projected(value: Array, projection: Array) -> Array:
    """The value of ``projection`` with the gradient of ``value``."""
    return value + jax.lax.stop_gradient(projection - value)


def projection_by(project: Callable[[Params], dict[str, Any]]) -> optax.GradientTransformation:
    """An optax transformation after which ``project`` leaves the parameters as they are."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stepped = project(optax.apply_updates(params, updates))  # type: ignore
        return jax.tree.map(jnp.subtract, stepped, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
