"""A net of flax.nnx."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from pyro_vd.numpyro._numpyro import current_key
from pyro_vd.numpyro.nets.net import Net, follow


class NnxNet(Net):
    """A flax.nnx module; its mode (``train()``, ``eval()``) counts at every call."""

    def __init__(self, net: Any):
        from flax import nnx

        self.general = (nnx.LinearGeneral, nnx.Einsum)
        dense = (nnx.Linear, *self.general, nnx.Conv, nnx.ConvTranspose)
        self.weights = {dense: "kernel", (nnx.Embed,): "embedding"}
        self._module, self.kind = net, type(net).__name__
        _, parameters, _, state = self._split()
        self._paths = {".".join(map(str, path)): path for path in dict(nnx.to_flat_state(parameters))}
        flat = dict(nnx.to_flat_state(parameters))
        self.parameters = {name: flat[path][...] for name, path in self._paths.items()}
        self.owners = {name: follow(net, path[:-1]) for name, path in self._paths.items()}
        self.recurrent = {
            name
            for name, path in self._paths.items()
            if any(isinstance(follow(net, path[:length]), nnx.RNNCellBase) for length in range(len(path)))
        }
        self.state = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(state)}

    def _split(self) -> tuple:
        from flax import nnx

        return nnx.split(self._module, nnx.Param, nnx.RngState, ...)

    def key(self, kwargs: dict) -> Array | None:
        return current_key() if self._split()[2] else None

    def call(
        self, parameters: dict[str, Any], state: Any, key: Array | None, args: tuple, kwargs: dict
    ) -> tuple[Any, Any]:
        from flax import nnx

        graph, old_parameters, rngs, old_state = self._split()
        rngs = jax.tree.map(lambda leaf: leaf, rngs)  # a copy, whose counters the call may move
        if key is not None:  # of dropout layers: it comes from the key of the model, as all other noise
            rngs = _with_keys(rngs, key)
        net = nnx.merge(graph, _replaced(old_parameters, parameters), rngs, _replaced(old_state, state))
        output = net(*args, **kwargs)
        *_, new_state = nnx.split(net, nnx.Param, nnx.RngState, ...)
        return output, {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(new_state)}

    def rebuild(self, parameters: dict[str, Array], state: Any) -> Any:
        from flax import nnx

        graph, old_parameters, rngs, old_state = self._split()
        copied = jax.tree.map(lambda leaf: leaf, rngs)
        return nnx.merge(graph, _replaced(old_parameters, parameters), copied, _replaced(old_state, state))


def _replaced(state: Any, values: dict[str, Any]) -> Any:
    """An nnx state with other values."""
    from flax import nnx

    flat = [(path, variable.replace(values[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.from_flat_state(flat)


def _with_keys(rngs: Any, key: Array) -> Any:
    """An nnx state of random streams with keys made from ``key``."""
    from flax import nnx

    flat = [
        (path, variable.replace(jax.random.fold_in(key, i)) if isinstance(variable, nnx.RngKey) else variable)
        for i, (path, variable) in enumerate(nnx.to_flat_state(rngs))
    ]
    return nnx.from_flat_state(flat)
