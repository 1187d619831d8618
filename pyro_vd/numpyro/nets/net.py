"""The form in which a BayesianModule uses nets of all libraries: named parameters, a state, and a pure call.

A name is the path of a parameter, joined by dots: ``"Dense_0.kernel"``, ``"layers.0.weight"``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


class Net(ABC):
    """Abstract: a net taken apart.

    Attributes:
        kind: class of the net.
        parameters: the arrays that can be trained, by name, in the order of the net.
        owners: for each parameter, the layer it belongs to: a module, or its type where a net has none at hand.
        recurrent: names of the parameters of recurrent cells, which are used at every step of a sequence.
        state: a pytree of what a call may change and training does not (BatchNorm's averages); empty without one.
        weights: types of layers that are linear in their weight, or recurrent, and the name or pattern of it: what is
            random unless ``where`` says otherwise. No biases, no gains of normalisation layers.
        general: types of those layers that sum over the first dimensions of their kernel, whatever their number.
    """

    kind: str
    parameters: dict[str, Array]
    owners: dict[str, Any]
    recurrent: set[str]
    state: Any
    weights: dict[tuple[type, ...], str]
    general: tuple[type, ...] = ()

    def weight_of(self, name: str) -> str | None:
        """The name or pattern of the weight of the layer that a parameter belongs to; None for an unknown layer."""
        return next((leaf for types, leaf in self.weights.items() if is_layer(self.owners[name], types)), None)

    def unit_dims(self, name: str) -> tuple[int, int]:
        """The dimensions of the output and of the input units of a weight, by the layout of its library."""
        ndim = self.parameters[name].ndim
        if name.rpartition(".")[2] != "kernel":  # (out, in, *spatial)
            return 0, min(1, ndim - 1)
        if is_layer(self.owners[name], self.general):  # (*in, *out)
            return ndim - 1, 0
        return ndim - 1, max(ndim - 2, 0)  # (*spatial, in, out)

    def prepare(self, args: tuple, kwargs: dict) -> None:  # noqa: B027
        """Take in the arguments of the first call, for nets whose parameters depend on them."""

    def likely(self) -> Net | None:
        """What is known of the net before :meth:`prepare`: itself, or None."""
        return self if self.owners else None

    def forget(self) -> None:  # noqa: B027
        """Drop values that :meth:`prepare` drew, so that it draws them again."""

    def key(self, kwargs: dict) -> Array | None:
        """A key of the model for the noise of the net's own layers (Dropout), None where it draws none.

        It is drawn before the net is called: inside Quax the handlers that give keys would keep its tracers.
        """
        return None

    def check_state(self, site: str, given: Any) -> None:
        """Raise unless ``given``, of some parameters, holds a state with the names and shapes of this net's."""
        shapes, got = _shapes({"values": self.state}), _shapes(given)
        if got != shapes:
            raise ValueError(
                f"site {site!r}: expected the state of this net, arrays of the shapes {shapes}, got {got or 'none'}; "
                "write params={**svi.get_params(svi_state), **svi_state.mutable_state}, of a training of this net"
            )

    @abstractmethod
    def call(
        self, parameters: dict[str, Any], state: Any, key: Array | None, args: tuple, kwargs: dict
    ) -> tuple[Any, Any]:
        """Output and new state; ``key`` is what :meth:`key` gave."""

    @abstractmethod
    def rebuild(self, parameters: dict[str, Array], state: Any) -> Any:
        """A net of the library with these values."""


def is_layer(owner: Any, types: tuple[type, ...]) -> bool:
    """Whether the owner of a parameter, a layer or its type, is of one of the ``types``."""
    return issubclass(owner, types) if isinstance(owner, type) else isinstance(owner, types)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): jnp.shape(leaf) for path, leaf in leaves}


def follow(net: Any, path: tuple) -> Any:
    """The object at the end of a path of attributes, keys and indices."""
    for part in path:
        net = net[part] if isinstance(part, int) or not hasattr(net, str(part)) else getattr(net, part)
    return net
