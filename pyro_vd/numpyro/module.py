"""BayesianModule: any flax or equinox net as a NumPyro model, and data_plate, which scales the likelihood."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import quax
from jax import Array
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.primitives import mutable

from pyro_vd.common.choice import LEAST_SHARE, as_where, check_prior_keys, layers_named, matching, prior_for
from pyro_vd.common.options import check_count
from pyro_vd.numpyro.checks import require_key
from pyro_vd.numpyro.estimators import check_precision
from pyro_vd.numpyro.nets import Net, adapt, is_layer
from pyro_vd.numpyro.weights import RandomWeight

Where = Callable[[str, Any], bool] | type | str | tuple | list | None
Prior = (
    Distribution
    | Mapping[str | type, Distribution]
    | Callable[[str, Array], Distribution]
    | Callable[[str, Array, Any], Distribution]
)


class BayesianModule:
    """An unmodified flax or equinox net whose chosen parameters are sample sites of a NumPyro model.

    Calling it samples the chosen parameters, registers the others with NumPyro as deterministic parameters, and
    calls ``net`` with both. The net itself is not changed: its own values of the chosen parameters stay
    where they are, and are where a guide of :mod:`pyro_vd.guides.numpyro` starts. What a call changes (BatchNorm's
    averages) is a ``numpyro.mutable`` site, ``f"{name}.state"``; an update that is not finite is not kept.

    Args:
        net: a flax.linen module, bound to its variables (``net.bind(net.init(rng_key, x))``) or not: one that is not
            is initialised at its first call, from the key of the model. A flax.nnx module. An equinox module, or the
            pair of ``eqx.nn.make_with_state``: written for one example, its positional arguments are mapped over
            their first axis (``axis_name="batch"``).
        prior: a distribution for every weight, expanded to the shape of each parameter; or a mapping from
            parameter name, pattern (``"Dense_0.*"``) or layer type to distributions, of which the first match counts;
            or a callable ``(parameter_name, parameter) -> distribution``, or ``(parameter_name, parameter, layer)``.
        name: prefix of the sites, ``f"{name}.{parameter_name}"``.
        where: which parameters are random. None: the weights, no biases and no gains of normalisation: those of Dense
            or Linear, DenseGeneral or LinearGeneral (which attention projects with), Einsum, Conv, ConvTranspose,
            Embed or Embedding, and of recurrent cells (whose weights have one coherent draw for the whole sequence
            and all examples, under every estimator). A layer type, or several: the weights of those. A parameter name
            or pattern, or several. A callable ``(parameter_name, layer) -> bool``, with linen the type of the layer.
            Where less than half of the elements of matrices are chosen by default, a warning names the layers left out.

    Attributes:
        weight_names: names of the random parameters, in parameter order; tied ones once. With linen, from the first
            call on.

    Raises:
        ValueError: no parameter is chosen; a name or pattern that matches nothing; a parameter without a prior; use
            inside a plate; no random key; a net with a state but without the state it was trained to; float64
            parameters while JAX has float64 switched off.

    Example:
        >>> import equinox as eqx, jax, numpyro
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = BayesianModule(net, prior=numpyro.distributions.Normal(0.0, 1.0))
        >>> bnn.weight_names, numpyro.handlers.seed(bnn, rng_seed=0)(jax.numpy.ones((5, 3))).shape
        (('weight',), (5, 2))
    """

    def __init__(self, net: Any, prior: Prior, name: str = "net", where: Where = None):
        self.adapted: Net = adapt(net)
        self.name = name
        self._prior, self._where = prior, where
        self.priors: dict[str, Distribution] = {}
        if self.adapted.owners:
            self._choose()

    @property
    def weight_names(self) -> tuple[str, ...]:
        if not self.priors:
            raise ValueError(
                f"BayesianModule {self.name!r}: expected a linen net that was called once, got a new one, whose layers "
                "are not known; call the model or guide first"
            )
        return tuple(self.priors)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.adapted.prepare(args, kwargs)
        if not self.priors:
            self._choose()
        trained = False
        values: dict[str, Any] = {}
        for parameter_name, parameter in self.adapted.parameters.items():
            if parameter_name in self.priors:
                values[parameter_name] = self._sample(parameter_name, parameter)
            else:
                site = f"{self.name}.{parameter_name}"
                stored = numpyro.param(site) if numpyro.primitives._PYRO_STACK else None  # type: ignore
                trained = trained or stored is not None
                check_precision(f"parameter {site!r}", "its value", stored)
                values[parameter_name] = numpyro.param(site, parameter) if stored is None else stored
        holder = self._holder(trained)
        state = self.adapted.state if holder is None else holder["values"]

        def run(values: dict[str, Any], state: Any) -> tuple[Any, Any]:
            return self.adapted.call(values, state, args, kwargs)

        output, new = quax.quaxify(run)(values, state)
        if holder is not None:
            holder["values"] = _kept_finite(jax.lax.stop_gradient(new), state)
        return output

    def site(self, parameter_name: str) -> str:
        """The sample site of a random parameter."""
        return f"{self.name}.{parameter_name}"

    def _choose(self) -> None:
        parameters = self.adapted.parameters
        for parameter_name, parameter in parameters.items():
            check_precision(f"BayesianModule {self.name!r}", f"parameter {parameter_name!r} of the net", parameter)
        weights = _chosen(self.adapted, self._where, self.name)
        owners = {weight: self.adapted.owners[weight] for weight in weights}
        for weight, owner in owners.items():
            self.priors[weight] = prior_for(self._prior, weight, parameters[weight], owner, is_layer, Distribution)
        check_prior_keys(self._prior, owners, is_layer)

    def _sample(self, parameter_name: str, parameter: Array) -> Any:
        site = self.site(parameter_name)
        prior = self.priors[parameter_name].expand(parameter.shape).to_event(parameter.ndim)
        # Where a guide starts, and where the units of the weight lie.
        infer = {"net_parameter": parameter, "unit_dims": self.adapted.unit_dims(parameter_name)}
        try:
            value: Any = numpyro.sample(site, prior, infer=infer)
        except AssertionError:
            # NumPyro's distributions assert that they have a key.
            require_key(f"site {site!r}", numpyro.prng_key() if numpyro.primitives._PYRO_STACK else None)  # type: ignore
            raise
        if value.shape != parameter.shape:
            raise ValueError(
                f"site {site!r}: expected a weight of shape {tuple(parameter.shape)}, got {tuple(value.shape)}: the "
                "net was called inside a plate, which repeats its weights and scales its KL; call it before the "
                "plate, and put only the likelihood inside"
            )
        if isinstance(value, RandomWeight) and parameter_name in self.adapted.recurrent:
            return value.materialize()  # used at every step of a sequence: no noise of its own for each
        return value

    def _holder(self, trained: bool) -> dict[str, Any] | None:
        """The mutable site of the state, None for a net without one."""
        if not jax.tree.leaves(self.adapted.state):
            return None
        site = f"{self.name}.state"
        if trained and mutable(site) is None:
            raise ValueError(
                f"site {site!r}: expected the state of the net beside its parameters, got parameters only; write "
                "params={**svi.get_params(svi_state), **svi_state.mutable_state}"
            )
        return mutable(site, {"values": self.adapted.state})  # type: ignore


def data_plate(dataset_size: int, batch_size: int, name: str = "data", dim: int | None = None) -> numpyro.plate:
    """A plate over a minibatch that scales its log likelihood by ``dataset_size / batch_size``.

    As ``numpyro.plate(name, dataset_size, subsample_size=batch_size)``, without the permutation of all
    indices that the latter draws each time: the loader has chosen the batch already.

    Args:
        dataset_size: number of examples in the data set.
        batch_size: number of examples in this batch.
        name: name of the plate.
        dim: batch dimension of the plate, negative; the rightmost free one if not given.

    Raises:
        ValueError: unless ``1 <= batch_size <= dataset_size``.

    Example:
        >>> with data_plate(60000, 100) as index:
        ...     len(index)
        100
    """
    dataset_size = check_count("dataset_size", dataset_size, owner="data_plate")
    batch_size = check_count("batch_size", batch_size, owner="data_plate")
    if not 1 <= batch_size <= dataset_size:
        raise ValueError(
            f"data_plate: expected 1 <= batch_size <= dataset_size, got batch_size={batch_size} and "
            f"dataset_size={dataset_size}; dataset_size is the number of training examples (to predict on more than "
            "those at once, pass batch_size= to posterior_predictive)"
        )
    with handlers.substitute(data={name: jnp.arange(batch_size)}):
        return numpyro.plate(name, dataset_size, subsample_size=batch_size, dim=dim)


def _chosen(net: Net, where: Where, name: str) -> list[str]:
    parameters, owners = list(net.parameters), net.owners

    def of_types(types: tuple[type, ...]) -> set[str]:
        return {n for n in parameters if is_layer(owners[n], types) and _is_weight(net, n, "weight", "kernel")}

    if where is None:
        chosen = [n for n in parameters if _is_weight(net, n)]
        _say_what_is_left_out(net, chosen, name)
    else:
        chosen = list(matching(where, parameters, owners, of_types, kind="layer"))
    if not chosen:
        raise ValueError(
            f"where: expected at least one parameter to be random, got none of {parameters}; choose with "
            f"where={next(iter(net.weights))[0].__name__}, where={parameters[:1]} or where=lambda name, layer: ..."
        )
    return chosen


def _say_what_is_left_out(net: Net, chosen: list[str], name: str) -> None:
    """Warn where most of the matrices are of layers that no weight is known of."""
    matrices = {n: one.size for n, one in net.parameters.items() if one.ndim > 1}
    left_out = [n for n in matrices if n not in chosen]
    share = sum(matrices[n] for n in chosen if n in matrices) / max(sum(matrices.values()), 1)
    if not chosen or share >= LEAST_SHARE:
        return
    layers: dict[str, list[str]] = {}
    for one in left_out:
        owner = net.owners[one]
        kind = owner.__name__ if isinstance(owner, type) else type(owner).__name__
        layers.setdefault(kind, []).append(one.rpartition(".")[0])
    others = [n for n in net.parameters if n not in matrices and n not in chosen]
    warnings.warn(
        f"BayesianModule {name!r}: expected the matrices of the net to be random, got {share:.1%} of their elements; "
        f"deterministic are those of {layers_named(layers)}, layers of which no weight is known; write "
        f"where={as_where([*chosen, *left_out], others)} to make them random too, "
        f"where={as_where(chosen, [*others, *left_out])} for this choice without the warning",
        stacklevel=5,
    )


def _is_weight(net: Net, name: str, *otherwise: str) -> bool:
    """Whether a parameter is the weight of its layer; that of a layer unknown is called ``otherwise``."""
    leaf, known = name.rpartition(".")[2], net.weight_of(name)
    return leaf in otherwise if known is None else fnmatch.fnmatchcase(leaf, known)


def _kept_finite(new: Any, old: Any) -> Any:
    """The new state, or the old one where the new is not finite: all or nothing."""
    floating = [jnp.isfinite(a).all() for a in jax.tree.leaves(new) if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floating:
        return new
    keep = jnp.stack(floating).all()
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
