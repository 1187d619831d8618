"""A net of equinox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_vd.numpyro.arguments import check_precision
from pyro_vd.numpyro.nets.net import Net, follow


class EquinoxNet(Net):
    """An equinox module, written for one example: its positional arguments are mapped over their first axis."""

    def __init__(self, net: Any, state: Any):
        import equinox as eqx

        is_index = lambda leaf: isinstance(leaf, eqx.nn.StateIndex)  # noqa: E731
        if state is None and any(map(is_index, jax.tree.leaves(net, is_leaf=is_index))):
            raise ValueError(
                f"BayesianModule: expected the state of {type(net).__name__} beside it, got the module alone; write "
                "net=eqx.nn.make_with_state(Net)(..., key=key), the pair of both"
            )
        # All leaves are checked: a float64 array of NumPy is not a parameter, since equinox takes arrays of JAX alone.
        for path, leaf in jax.tree_util.tree_leaves_with_path(net):
            name = ".".join(str(_entry(part)) for part in path)
            check_precision("BayesianModule", f"parameter {name!r} of the net", leaf)
        cells = (eqx.nn.GRUCell, eqx.nn.LSTMCell)
        dense = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose, eqx.nn.Embedding)
        self.weights = {dense: "weight", cells: "weight_*"}
        self.kind = type(net).__name__
        self._stateful = state is not None
        self.state, self._state_tree = jax.tree.flatten(state)
        arrays, self._static = eqx.partition(net, eqx.is_inexact_array)
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(arrays)
        paths = [tuple(_entry(part) for part in path) for path, _ in leaves]
        self.parameters = {".".join(map(str, p)): leaf for p, (_, leaf) in zip(paths, leaves, strict=True)}
        self.owners = {".".join(map(str, path)): follow(net, path[:-1]) for path in paths}
        self.recurrent = {name for name, owner in self.owners.items() if isinstance(owner, cells)}

    def call(
        self, parameters: dict[str, Any], state: Any, key: Array | None, args: tuple, kwargs: dict
    ) -> tuple[Any, Any]:
        net = self._net(parameters)
        # A key is split over the examples; every other keyword is the same for all of them.
        given = kwargs.get("key")
        keys = {} if given is None else {"key": jax.random.split(given, jax.tree.leaves(args)[0].shape[0])}
        same = {name: value for name, value in kwargs.items() if name not in keys}
        with _shapes_noted(self.kind, args):
            if not self._stateful:
                return jax.vmap(lambda a, k: net(*a, **k, **same), axis_name="batch")(args, keys), state
            output, new_state = jax.vmap(
                lambda a, k, s: net(*a, s, **k, **same), in_axes=(0, 0, None), out_axes=(0, None), axis_name="batch"
            )(args, keys, jax.tree.unflatten(self._state_tree, state))
            return output, jax.tree.leaves(new_state)

    def rebuild(self, parameters: dict[str, Array], state: Any) -> Any:
        net = self._net(parameters)
        return (net, jax.tree.unflatten(self._state_tree, state)) if self._stateful else net

    def _net(self, parameters: dict[str, Any]) -> Any:
        import equinox as eqx

        # No check that leaves are arrays: they may be random weights.
        return eqx.combine(jax.tree.unflatten(self._tree, [parameters[name] for name in self.parameters]), self._static)


@contextmanager
def _shapes_noted(kind: str, args: tuple) -> Iterator[None]:
    """A context whose errors say what the net was called with, for a net that is written for a batch."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not str(error).startswith("site "):  # of a random weight, which says all
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(args)]
            error.add_note(
                f"BayesianModule: expected an equinox net for one example, got {kind} and inputs of shapes {shapes}; "
                f"it was called with {[shape[1:] for shape in shapes]}, one example each. Write the net without a "
                "batch axis and without its own jax.vmap"
            )
        raise


def _entry(part: Any) -> Any:
    """One step of a path of ``jax.tree_util``: an attribute name, a key or an index."""
    return getattr(part, "name", getattr(part, "key", getattr(part, "idx", None)))
