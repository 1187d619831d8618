"""BayesianModule: any flax or equinox net as a NumPyro model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import quax
from jax import Array
from numpyro.distributions import Distribution
from numpyro.primitives import mutable

from pyro_vd.common.choice import check_prior_keys, prior_for
from pyro_vd.common.reports import ModuleReport
from pyro_vd.numpyro._numpyro import current_key, handlers_are_active
from pyro_vd.numpyro.arguments import check_data, check_real, kind_of, require_key
from pyro_vd.numpyro.choice import Where, choose, report_of, say_what_is_left_out
from pyro_vd.numpyro.nets import Net, adapt, is_layer
from pyro_vd.numpyro.weights import RandomWeight, run_counted

Prior = (
    Distribution
    | Mapping[str, Distribution]
    | Mapping[type, Distribution]
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
        TypeError: a net with parameters that are complex numbers, integers or truth values.

    Example:
        >>> import equinox as eqx, jax, numpyro
        >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        >>> bnn = BayesianModule(net, prior=numpyro.distributions.Normal(0.0, 1.0))
        >>> bnn.weight_names, numpyro.handlers.seed(bnn, rng_seed=0)(jax.numpy.ones((5, 3))).shape
        (('weight',), (5, 2))

    See also:
        :func:`pyro_vd.numpyro.data_plate`, :func:`pyro_vd.numpyro.prune`,
        :class:`pyro_vd.guides.numpyro.AutoSparseVD`.
    """

    def __init__(self, net: Any, prior: Prior, name: str = "net", where: Where = None):
        self.adapted: Net = adapt(net)
        if not isinstance(name, str):
            raise TypeError(f"BayesianModule: expected name to be text, got {kind_of(name)}; write name='net'")
        _check_prior(prior)
        self.name = name
        self._prior, self._where = prior, where
        self.priors: dict[str, Distribution] = {}
        self._why: dict[str, str] = {}
        if self.adapted.owners:
            self._choose()

    @property
    def weight_names(self) -> tuple[str, ...]:
        self._check_called()
        return tuple(self.priors)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        check_data(f"BayesianModule {self.name!r}", args, kwargs)
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
                stored = numpyro.param(site) if handlers_are_active() else None
                trained = trained or stored is not None
                _check_shape(site, stored, parameter)
                values[parameter_name] = numpyro.param(site, parameter) if stored is None else stored
        holder = self._holder(trained)
        state = self.adapted.state if holder is None else holder["values"]

        key = self.adapted.key(kwargs)

        def run(values: Mapping[str, Any], state: Any, key: Any) -> tuple[Any, Any]:
            return self.adapted.call(dict(values), state, key, args, kwargs)

        output, new = run_counted(lambda values: quax.quaxify(run)(values, state, key), values)
        if holder is not None:
            holder["values"] = _kept_finite(jax.lax.stop_gradient(new), state)
        return output

    def site(self, parameter_name: str) -> str:
        """The sample site of a random parameter."""
        return f"{self.name}.{parameter_name}"

    def report(self) -> ModuleReport:
        """Which parameters of the net are random, under which prior; which are not, and why.

        Returns:
            A row for each parameter; prints as a table.

        Raises:
            ValueError: a linen net that was not called yet.

        Example:
            >>> import equinox as eqx, jax, numpyro
            >>> net = eqx.nn.Linear(3, 2, key=jax.random.key(0))
            >>> print(BayesianModule(net, prior=numpyro.distributions.Normal(0.0, 1.0)).report())
            parameter  layer   shape  is             prior                         why
            weight     Linear  2x3    random         Normal(loc: 0.0, scale: 1.0)  weight of Linear
            bias       Linear  2      deterministic                                a bias or a gain
            1 of 2 parameters are random (6 elements, 100.0% of the matrices); deterministic 1, frozen 0
        """
        self._check_called()
        return report_of(self.adapted, self.priors, self._why, self._where)

    def __repr__(self) -> str:
        said = self.report().summary if self.priors else "not called yet"
        return f"BayesianModule({self.adapted.kind}, name={self.name!r}, {said})"

    def weight_messages(self) -> dict[str, Any]:
        """Message of each weight as a trace has it, its value that of the net: for guides that have seen no data.

        A bound linen net that was not called yet has unknown layers: its weights are those with the name of a weight
        or with a name in ``where``; the first call may correct them. Empty where nothing is known.
        """
        net = self.adapted.likely()
        by_name = self._where is None or isinstance(self._where, str)
        by_name = by_name or (isinstance(self._where, (list, tuple)) and all(isinstance(w, str) for w in self._where))
        if net is None or not (self.priors or by_name):
            return {}
        priors = self.priors or self._priors_of(net, list(choose(net, self._where)))
        messages = {}
        for name, prior in priors.items():
            parameter = net.parameters[name]
            fn, infer = _expanded(net, name, prior)
            infer |= {} if self.priors or parameter.ndim < 3 else {"unit_dims": None}  # of a convolution or a product
            messages[self.site(name)] = {
                "type": "sample", "name": self.site(name), "fn": fn, "value": parameter, "infer": infer,
                "is_observed": False, "cond_indep_stack": [],
            }  # fmt: skip
        return messages

    def _check_called(self) -> None:
        if not self.priors:
            raise ValueError(
                f"BayesianModule {self.name!r}: expected a linen net that was called once, got a new one, whose layers "
                "are not known; call the model or guide first"
            )

    def _choose(self) -> None:
        parameters = self.adapted.parameters
        for parameter_name, parameter in parameters.items():
            check_real(f"BayesianModule {self.name!r}", f"parameter {parameter_name!r} of the net", parameter)
        self._why = choose(self.adapted, self._where)
        weights = list(self._why)
        self.priors = self._priors_of(self.adapted, weights)
        check_prior_keys(self._prior, {weight: self.adapted.owners[weight] for weight in weights}, is_layer)
        if self._where is None:
            say_what_is_left_out(self.adapted, weights, self.name)

    def _priors_of(self, net: Net, weights: list[str]) -> dict[str, Distribution]:
        return {
            weight: prior_for(self._prior, weight, net.parameters[weight], net.owners[weight], is_layer, Distribution)
            for weight in weights
        }

    def _sample(self, parameter_name: str, parameter: Array) -> Any:
        site = self.site(parameter_name)
        prior, infer = _expanded(self.adapted, parameter_name, self.priors[parameter_name])
        try:
            value: Any = numpyro.sample(site, prior, infer=infer)
        except AssertionError as error:
            # NumPyro's distributions assert that they have a key, and its traces that every site has another name.
            require_key(f"site {site!r}", current_key())
            if "unique names" not in str(error):
                raise
            raise ValueError(
                f"site {site!r}: expected every BayesianModule of a model to have a name of its own and one call, got "
                f"a second call of {self.name!r}; write BayesianModule(..., name=...) for one of two, or call the net "
                "once, for all examples together"
            ) from error
        if value.shape != parameter.shape:
            raise ValueError(
                f"site {site!r}: expected a weight of shape {tuple(parameter.shape)}, got {tuple(value.shape)}: the "
                "net was called inside a plate, which repeats its weights and scales its KL; call it before the "
                "plate, and put only the likelihood inside"
            )
        if isinstance(value, RandomWeight) and parameter_name in self.adapted.recurrent:
            return value.materialize()  # used at every step of a sequence: all steps share its noise
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
        holder: Any = mutable(site, {"values": self.adapted.state})  # type: ignore
        self.adapted.check_state(site, holder)
        return holder


def _check_prior(prior: Any) -> None:
    """Raise for a value that is not a prior, before it is used."""
    several = list(prior.values()) if isinstance(prior, Mapping) else [prior]
    for one in several:
        # Distributions of Pyro can be called too.
        is_function = callable(one) and not isinstance(one, type) and not hasattr(one, "log_prob")
        if not isinstance(one, Distribution) and (isinstance(prior, Mapping) or not is_function):
            raise TypeError(
                f"BayesianModule: expected prior to be a distribution of NumPyro, a mapping from names to such, or a "
                f"function (name, parameter) -> distribution, got {kind_of(one)}; write "
                "prior=numpyro.distributions.Normal(0.0, 1.0) or vd.ImproperLogUniform()"
            )


def _expanded(net: Net, name: str, prior: Distribution) -> tuple[Distribution, dict[str, Any]]:
    """The prior of a whole weight; where a guide starts, and where the units of the weight lie."""
    parameter = net.parameters[name]
    infer = {"net_parameter": parameter, "unit_dims": net.unit_dims(name)}
    return prior.expand(parameter.shape).to_event(parameter.ndim), infer


def _check_shape(site: str, stored: Any, parameter: Array) -> None:
    if stored is None:
        return
    check_real(f"parameter {site!r}", "its value", stored)
    if jnp.shape(stored) != parameter.shape:
        raise ValueError(
            f"parameter {site!r}: expected a value of shape {tuple(parameter.shape)}, as in the net, got "
            f"{jnp.shape(stored)}; give the parameters that this net was trained to"
        )


def _kept_finite(new: Any, old: Any) -> Any:
    """The new state, or the old one where the new is not finite: all or nothing."""
    new = jax.tree.map(jnp.asarray, new)  # a net may set a number of Python
    floating = [jnp.isfinite(a).all() for a in jax.tree.leaves(new) if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floating:
        return new
    keep = jnp.stack(floating).all()
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
