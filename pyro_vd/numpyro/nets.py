"""The nets of flax.linen, flax.nnx and equinox seen alike: named parameters, a state, and a pure call.

A name is the path of a parameter, joined by dots: ``"Dense_0.kernel"``, ``"layers.0.weight"``.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array

from pyro_vd.numpyro.checks import require_key
from pyro_vd.numpyro.estimators import check_precision


class Net(ABC):
    """Abstract: a net taken apart.

    Attributes:
        parameters: the arrays that can be trained, by name, in the order of the net.
        owners: for each parameter, the layer it belongs to: a module, or its type where a net has none at hand.
        recurrent: names of the parameters of recurrent cells, which are used at every step of a sequence.
        state: a pytree of what a call may change and training does not (BatchNorm's averages); empty without one.
        weights: types of layers that are linear in their weight, or recurrent, and the name or pattern of it: what is
            random unless ``where`` says otherwise. No biases, no gains of normalisation layers.
        general: types of those layers that sum over the first dimensions of their kernel, whatever their number.
    """

    parameters: dict[str, Array]
    owners: dict[str, Any]
    recurrent: set[str]
    state: Any
    weights: dict[tuple[type, ...], str]
    general: tuple[type, ...] = ()

    def weight_of(self, name: str) -> str | None:
        """The name or pattern of the weight of the layer that a parameter belongs to; None for a layer unknown."""
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
        """See the arguments of the first call, for nets that need them to know their parameters."""

    @abstractmethod
    def call(self, parameters: dict[str, Any], state: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        """Output and new state."""

    @abstractmethod
    def rebuild(self, parameters: dict[str, Array], state: Any) -> Any:
        """A net of the library with these values."""


def adapt(net: Any) -> Net:
    """The net as a :class:`Net`.

    Raises:
        TypeError: no net of flax.linen, flax.nnx or equinox.
        ValueError: an equinox net with a state that does not come with it.
    """
    # A net of a library that was not imported cannot be here.
    if "flax" in sys.modules:
        from flax import linen, nnx

        if isinstance(net, linen.Module):
            return LinenNet(net)
        if isinstance(net, nnx.Module):
            return NnxNet(net)
    if "equinox" in sys.modules:
        import equinox

        module, state = net if isinstance(net, tuple) and len(net) == 2 else (net, None)
        if isinstance(module, equinox.Module):
            return EquinoxNet(module, state)
    raise TypeError(
        "BayesianModule: expected net to be a flax.linen, flax.nnx or equinox module (of equinox also the pair "
        f"of eqx.nn.make_with_state), got {type(net).__name__}"
    )


def is_layer(owner: Any, types: tuple[type, ...]) -> bool:
    """Whether the owner of a parameter, a layer or its type, is of one of the ``types``."""
    return issubclass(owner, types) if isinstance(owner, type) else isinstance(owner, types)


class LinenNet(Net):
    """A flax.linen module, bound to its variables or to be initialised at its first call."""

    def __init__(self, net: Any):
        from flax import linen
        from flax.linen.recurrent import DenseParams  # of OptimizedLSTMCell

        self.general = (linen.DenseGeneral, linen.Einsum)
        dense = (linen.Dense, *self.general, linen.Conv, linen.ConvTranspose, DenseParams)
        self.weights = {dense: "kernel", (linen.Embed,): "embedding"}
        self._module, self._variables = net.unbind() if net.scope is not None else (net, None)
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

    def _initialised(self, args: tuple, kwargs: dict) -> Any:
        key = require_key("BayesianModule: the first call of an unbound net", numpyro.prng_key())
        if isinstance(key, jax.core.Tracer):  # type: ignore
            raise ValueError(
                "BayesianModule: expected a net bound to its variables, or a first call outside of jit, got an "
                "unbound net inside it; write net.bind(net.init(rng_key, x))"
            )
        with jax.ensure_compile_time_eval():  # on a guide's first look at its model nothing else is computed
            parameters, dropout = jax.random.split(key)
            shapes = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype) if hasattr(a, "shape") else a, (args, kwargs))
            return self._module.init({"params": parameters, "dropout": dropout}, *shapes[0], **shapes[1])

    def call(self, parameters: dict[str, Any], state: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        if "rngs" not in kwargs and (key := numpyro.prng_key()) is not None:
            kwargs = {**kwargs, "rngs": {"dropout": key}}
        variables = {"params": self._nested(parameters), **state}
        return self._module.apply(variables, *args, mutable=list(state), **kwargs)

    def rebuild(self, parameters: dict[str, Array], state: Any) -> Any:
        return self._module.bind({"params": self._nested(parameters), **state})

    def _nested(self, parameters: dict[str, Any]) -> Any:
        from flax.traverse_util import unflatten_dict

        return unflatten_dict({self._paths[name]: value for name, value in parameters.items()})


class NnxNet(Net):
    """A flax.nnx module; what it is set to (``train()``, ``eval()``) counts at every call."""

    def __init__(self, net: Any):
        from flax import nnx

        self.general = (nnx.LinearGeneral, nnx.Einsum)
        dense = (nnx.Linear, *self.general, nnx.Conv, nnx.ConvTranspose)
        self.weights = {dense: "kernel", (nnx.Embed,): "embedding"}
        self._module = net
        _, parameters, _, state = self._split()
        self._paths = {".".join(map(str, path)): path for path in dict(nnx.to_flat_state(parameters))}
        flat = dict(nnx.to_flat_state(parameters))
        self.parameters = {name: flat[path][...] for name, path in self._paths.items()}
        self.owners = {name: _follow(net, path[:-1]) for name, path in self._paths.items()}
        self.recurrent = {
            name
            for name, path in self._paths.items()
            if any(isinstance(_follow(net, path[:length]), nnx.RNNCellBase) for length in range(len(path)))
        }
        self.state = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(state)}

    def _split(self) -> tuple:
        from flax import nnx

        return nnx.split(self._module, nnx.Param, nnx.RngState, ...)

    def call(self, parameters: dict[str, Any], state: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        from flax import nnx

        graph, old_parameters, rngs, old_state = self._split()
        rngs = jax.tree.map(lambda leaf: leaf, rngs)  # a copy, whose counters the call may move
        key = numpyro.prng_key() if rngs else None
        if key is not None:  # of dropout layers: as any other noise of a model, from its key
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
        # Of all leaves, not of parameters: a float64 array of NumPy is none, since equinox takes arrays of JAX alone.
        for path, leaf in jax.tree_util.tree_leaves_with_path(net):
            name = ".".join(str(_entry(part)) for part in path)
            check_precision("BayesianModule", f"parameter {name!r} of the net", leaf)
        cells = (eqx.nn.GRUCell, eqx.nn.LSTMCell)
        dense = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose, eqx.nn.Embedding)
        self.weights = {dense: "weight", cells: "weight_*"}
        self._stateful = state is not None
        self.state, self._state_tree = jax.tree.flatten(state)
        arrays, self._static = eqx.partition(net, eqx.is_inexact_array)
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(arrays)
        paths = [tuple(_entry(part) for part in path) for path, _ in leaves]
        self.parameters = {".".join(map(str, p)): leaf for p, (_, leaf) in zip(paths, leaves, strict=True)}
        self.owners = {".".join(map(str, path)): _follow(net, path[:-1]) for path in paths}
        self.recurrent = {name for name, owner in self.owners.items() if isinstance(owner, cells)}

    def call(self, parameters: dict[str, Any], state: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        net = self._net(parameters)
        # A key is split over the examples; every other keyword is the same for all of them.
        key = kwargs.get("key")
        keys = {} if key is None else {"key": jax.random.split(key, jax.tree.leaves(args)[0].shape[0])}
        same = {name: value for name, value in kwargs.items() if name not in keys}
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


def _entry(part: Any) -> Any:
    """One step of a path of ``jax.tree_util``: an attribute name, a key or an index."""
    return getattr(part, "name", getattr(part, "key", getattr(part, "idx", None)))


def _follow(net: Any, path: tuple) -> Any:
    for part in path:
        net = net[part] if isinstance(part, int) or not hasattr(net, str(part)) else getattr(net, part)
    return net


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
