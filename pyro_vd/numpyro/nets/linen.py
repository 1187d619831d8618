"""A net of flax.linen."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_vd.numpyro._jax import is_traced
from pyro_vd.numpyro._numpyro import current_key
from pyro_vd.numpyro.arguments import require_key
from pyro_vd.numpyro.nets.net import Net


class LinenNet(Net):
    """A flax.linen module, bound to its variables or to be initialised at its first call."""

    def __init__(self, net: Any):
        from flax import linen
        from flax.linen.recurrent import DenseParams  # of OptimizedLSTMCell

        self.general = (linen.DenseGeneral, linen.Einsum)
        dense = (linen.Dense, *self.general, linen.Conv, linen.ConvTranspose, DenseParams)
        self.weights = {dense: "kernel", (linen.Embed,): "embedding"}
        self._module, self._variables = net.unbind() if net.scope is not None else (net, None)
        self.kind = type(self._module).__name__
        self._drawn = self._variables is None
        self.owners = {}

    def prepare(self, args: tuple, kwargs: dict) -> None:
        from flax import linen
        from flax.traverse_util import flatten_dict

        if self.owners:
            return
        layers: dict[tuple, Any] = {}

        def note(function: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            layers.setdefault(context.module.path, type(context.module))
            return function(*args, **kwargs)

        rngs = dict.fromkeys(("params", "dropout"), jax.random.key(0))
        with linen.intercept_methods(note):
            arrays = jax.eval_shape(lambda: self._module.init(rngs, *args, **kwargs))
        if self._variables is None:
            self._variables = self._initialised(args, kwargs)
        missing = sorted(set(arrays) - set(self._variables))
        if missing:
            raise ValueError(
                f"BayesianModule: expected a net bound to all its variables, got none of {missing}; write "
                "net.bind(net.init(rng_key, x)), with every collection that init returns"
            )
        state = {collection: values for collection, values in self._variables.items() if collection != "params"}
        self.state = state
        paths = flatten_dict(self._variables["params"])
        self.parameters = {".".join(path): value for path, value in paths.items()}  # type: ignore
        self._paths = {".".join(path): path for path in paths}
        self.owners = {name: layers[path[:-1]] for name, path in self._paths.items()}
        cells = {path for path, layer in layers.items() if issubclass(layer, linen.RNNCellBase)}
        self.recurrent = {
            name for name, path in self._paths.items() if any(path[:length] in cells for length in range(len(path)))
        }

    def likely(self) -> Net | None:
        """Of a bound net that was not called yet: layers are known by the names of their parameters alone."""
        from flax import linen
        from flax.traverse_util import flatten_dict

        if self.owners or self._variables is None:
            return super().likely()
        net: Any = copy.copy(self)
        types = {"kernel": linen.Dense, "embedding": linen.Embed}
        net.parameters = {".".join(path): value for path, value in flatten_dict(self._variables["params"]).items()}
        net.owners = {name: types.get(name.rpartition(".")[2], linen.Module) for name in net.parameters}
        return net

    def forget(self) -> None:
        if self._drawn:
            self._variables, self.owners = None, {}

    def _initialised(self, args: tuple, kwargs: dict) -> Any:
        key = require_key("BayesianModule: the first call of an unbound net", current_key())
        if is_traced(key):
            raise ValueError(
                "BayesianModule: expected a net bound to its variables, or a first call outside of jit, got an "
                "unbound net inside it; write net.bind(net.init(rng_key, x))"
            )
        with jax.ensure_compile_time_eval():  # in a guide's first run of its model nothing else is computed
            parameters, dropout = jax.random.split(key)
            shapes = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype) if hasattr(a, "shape") else a, (args, kwargs))
            return self._module.init({"params": parameters, "dropout": dropout}, *shapes[0], **shapes[1])

    def key(self, kwargs: dict) -> Array | None:
        return None if "rngs" in kwargs else current_key()

    def call(
        self, parameters: dict[str, Any], state: Any, key: Array | None, args: tuple, kwargs: dict
    ) -> tuple[Any, Any]:
        if key is not None:
            kwargs = {**kwargs, "rngs": {"dropout": key}}
        variables = {"params": self._nested(parameters), **state}
        return self._module.apply(variables, *args, mutable=list(state), **kwargs)

    def rebuild(self, parameters: dict[str, Array], state: Any) -> Any:
        return self._module.bind({"params": self._nested(parameters), **state})

    def _nested(self, parameters: dict[str, Any]) -> Any:
        from flax.traverse_util import unflatten_dict

        return unflatten_dict({self._paths[name]: value for name, value in parameters.items()})
