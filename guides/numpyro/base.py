"""What every guide of random weights shares: which sites it covers, where it starts, how it samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from jax import Array
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoGuide, AutoNormal

from pyro_vd.guides.base import Where, site_matcher
from pyro_vd.guides.numpyro.starts import alone, init_to_net_value, seen, started
from pyro_vd.numpyro.checks import latent_sites, require_key
from pyro_vd.numpyro.estimators import check_precision
from pyro_vd.numpyro.handlers import base_distribution
from pyro_vd.numpyro.posteriors import WeightPosterior
from pyro_vd.numpyro.priors import ImproperLogUniform

Params = Mapping[str, Any]


class WeightGuide(AutoGuide):
    """Abstract: a mean-field automatic guide with a :class:`WeightPosterior` at every weight site.

    Weight sites are those of a :class:`pyro_vd.numpyro.BayesianModule`, those with the improper log-uniform prior,
    and those that ``where`` names. Without ``where``, every other latent site (a noise scale, say) gets NumPyro's
    ``AutoNormal``, whose KL is estimated from its draw. With ``where``, only the sites it matches are
    covered, and several guides are combined by :func:`pyro_vd.guides.numpyro.mixed_guide`. The parameters are named
    ``f"{prefix}.{quantity}.{site}"``; whatever reads them takes ``params``, as ``svi.get_params`` returns them.

    Args:
        model: a NumPyro model.
        where: site name or pattern (``"net.Dense_0.*"``), several, or a callable ``site_name -> bool``.
        init_loc_fn: where the mean of each site starts, as in NumPyro's automatic guides.
        create_plates: as in NumPyro's automatic guides.
        prefix: of the names of the parameters.

    Raises:
        ValueError: ``where`` matches no site; a site this family cannot cover; no random key; float64 without x64.
    """

    prototype_trace: Any  # of the model, from the first call on
    unit_dim: Any = None  # dimension where the units lie, in families whose noise is shared by units
    never_learnable: Mapping[str, str] = {}  # quantity -> why it cannot be trained

    def __init__(
        self,
        model: Callable,
        *,
        where: Where = None,
        init_loc_fn: Callable[[Any], Array] = init_to_net_value,
        create_plates: Callable | None = None,
        prefix: str = "auto",
    ):
        self._where = None if where is None else site_matcher(where)
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn, create_plates=create_plates)

    @property
    def weight_sites(self) -> tuple[str, ...]:
        """Names of the sites that are random weights, in model order.

        Raises:
            ValueError: before the first call, when the model has not been seen.
        """
        if self.prototype_trace is None:
            raise ValueError(
                f"{type(self).__name__}: expected a guide that has seen its model once, got a new one; call "
                "svi.init(rng_key, *args) with the arguments of the model first"
            )
        return self._weight_sites

    @abstractmethod
    def posterior(self, params: Params, site: str) -> WeightPosterior:
        """The distribution of the weight at ``site``, without ``to_event``, from these parameters."""

    @abstractmethod
    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        """Make the parameters of one weight site, its mean starting at ``value``."""

    def posteriors(self, params: Params) -> dict[str, WeightPosterior]:
        """The distribution of every weight site."""
        return {site: self.posterior(params, site) for site in self.weight_sites}

    def log_alpha(self, params: Params, site: str) -> Array:
        """Natural log of the noise ratio at ``site``, of a shape that broadcasts with the weight.

        One value per weight, per unit (size 1 along the other axes) or per layer, as the family has it.

        Raises:
            ValueError: not a weight site of this guide.
        """
        return self.posterior(params, self._known(site)).log_alpha

    def dropout_rate(self, params: Params, site: str) -> Array:
        """Probability of dropping with the noise ratio of ``site``, ``alpha / (1 + alpha)``; shape as ``log_alpha``."""
        return jax.nn.sigmoid(self.log_alpha(params, site))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Sample every site; returns a dict from site name to value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        params = {name: numpyro.param(name, value) for name, value in self._learned.items()}
        result: dict[str, Any] = {}
        for site in self._order:  # that of the model: other ELBOs take another for a sign of dependence
            if site in self._others:
                result.update(self._others[site](*args, **kwargs))
                continue
            message = self.prototype_trace[site]  # type: ignore
            posterior = self.posterior(params, site)
            with ExitStack() as stack:
                for frame in message["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                result[site] = numpyro.sample(site, posterior.to_event(message["fn"].event_dim - posterior.event_dim))
        if any(isinstance(value, jax.core.Tracer) for value in self._starts.values()):  # type: ignore
            self.prototype_trace = None  # the first call was traced: what it saw does not outlive the trace
        return result

    def median(self, params: Params) -> dict[str, Array]:
        """The posterior mean of every weight, and the median of every other site."""
        medians: dict[str, Any] = {site: posterior.mean for site, posterior in self.posteriors(params).items()}
        for part in self._others.values():
            medians.update(part.median(params))  # type: ignore
        return {site: medians[site] for site in self._order}

    def sample_posterior(
        self, rng_key: Array, params: Params, *args: Any, sample_shape: tuple[int, ...] = (), **kwargs: Any
    ) -> dict[str, Any]:
        """Draws of every site, shape ``sample_shape + shape of the site``; coherent weight draws."""
        keys = jax.random.split(require_key(f"{type(self).__name__}.sample_posterior", rng_key), len(self._order))
        draws = {}
        for site, key in zip(self._order, keys, strict=True):
            if site in self._others:
                draws.update(self._others[site].sample_posterior(key, params, sample_shape=sample_shape))  # type: ignore
            else:
                draws[site] = self.posterior(params, site).sample(key, sample_shape)
        return draws

    def set_learnable(
        self, quantity: str, learnable: bool = True, where: Where = None, *, params: Params | None = None
    ) -> None:
        """Make a quantity a trained parameter, or a constant of the guide, keeping its value.

        Begin with ``svi.init`` anew afterwards: the parameters are others. With ``params`` the others of this guide
        keep their values too.

        Args:
            quantity: name of a quantity of this guide, such as "locs", "log_sigma2s" or "log_alphas".
            learnable: parameter or constant.
            where: sites, as in the constructor; all weight sites if None.
            params: parameters whose values are to be kept; those the guide starts from if None.

        Raises:
            ValueError: no such quantity; one without a gradient.
        """
        sites = [site for site in self.weight_sites if where is None or site_matcher(where)(site)]
        quantities = {name[len(self.prefix) + 1 :].partition(".")[0] for name in self._starts}
        if quantity not in quantities:
            raise ValueError(f"set_learnable: expected one of {sorted(quantities)}, got {quantity!r}")
        if not sites:
            raise ValueError(f"set_learnable: expected where= to match one of {list(self.weight_sites)}, got {where!r}")
        if learnable and quantity in self.never_learnable:
            raise ValueError(f"set_learnable: {quantity!r} of {type(self).__name__} {self.never_learnable[quantity]}")
        self._starts.update({name: params[name] for name in self._starts if params is not None and name in params})
        for site in sites:
            name = self._parameter(quantity, site)
            self._fixed.discard(name) if learnable else self._fixed.add(name)

    def project(self, params: Params) -> dict[str, Any]:
        """The parameters as this guide reads them: within the bounds that its family has, if any."""
        return dict(params)

    def projection(self) -> optax.GradientTransformation:
        """An optax transformation that keeps the parameters within the bounds of the family, step by step.

        Last in the optimizer: ``optax.chain(optax.adam(1e-3), guide.projection())``. Without it a parameter that a
        step took over its bound is read as the bound, but has to come back by as many steps as took it away.
        """

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            stepped = self.project(optax.apply_updates(params, updates))  # type: ignore
            return jax.tree.map(jnp.subtract, stepped, params), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        key = require_key(type(self).__name__, numpyro.prng_key() if numpyro.primitives._PYRO_STACK else None)  # type: ignore
        self.prototype_trace = seen(started(self.model, key, self.init_loc_fn), args, kwargs)
        self._prototype_frames, self._prototype_frame_full_sizes = {}, {}
        for name, site in self.prototype_trace.items():
            if site["type"] == "sample" and not site["is_observed"]:
                self._prototype_frames.update({frame.name: frame for frame in site["cond_indep_stack"]})
            elif site["type"] == "plate":
                self._prototype_frame_full_sizes[name] = site["args"][0]
        latent = dict(latent_sites(self.prototype_trace))
        covered = self._where or (lambda name: _is_weight(latent[name]))
        weights = tuple(name for name in latent if covered(name))
        if not weights:
            self.prototype_trace = None
            weight = "is a weight (of a BayesianModule, or under ImproperLogUniform)"
            reason = weight if self._where is None else "matches where"
            raise ValueError(
                f"{type(self).__name__}: expected a latent site that {reason}, got the sites {list(latent)}; name the "
                "weights with where="
            )
        self._weight_sites = weights
        self._starts: dict[str, Array] = {}
        self._fixed: set[str] = set()
        self._init_keys = dict(zip(weights, jax.random.split(jax.random.fold_in(key, 1), len(weights)), strict=True))
        with jax.ensure_compile_time_eval():
            for site in weights:
                self._check_site(site, latent[site])
                check_precision(f"site {site!r}", "the value that it starts from", latent[site]["value"])
                self._init_weight(site, jnp.asarray(latent[site]["value"]), latent[site])
        rest = [name for name in latent if name not in weights] if self._where is None else []
        self._order = tuple(name for name in latent if name in weights or name in rest)
        start: Any = self.init_loc_fn
        self._others = {
            site: AutoNormal(alone(self.model, key, start, site), prefix=self.prefix, init_loc_fn=start)
            for site in rest
        }

    def _check_site(self, site: str, message: Any) -> None:
        """Raise where this family cannot cover a site."""
        support = message["fn"].support
        while hasattr(support, "base_constraint"):  # of to_event
            support = support.base_constraint
        if support is not constraints.real:
            raise ValueError(
                f"site {site!r}: expected a weight on the real line for {type(self).__name__}, got a prior "
                f"{type(base_distribution(message['fn'])).__name__} with support {support}; leave it out of where= "
                "and cover it with numpyro.infer.autoguide.AutoNormal"
            )
        shape = tuple(message["fn"].event_shape)
        if self.unit_dim is not None and len(shape) < 2:
            raise ValueError(
                f"site {site!r}: expected a weight of two dimensions or more for {type(self).__name__}, whose noise is "
                f"shared by the units of a layer, got shape {shape}; cover it with AutoSparseVD, AutoMeanField or "
                "AutoVariationalDropout, whose noise is per weight, or leave it out of where="
            )
        if self.unit_dim is not None and not -len(shape) <= self.unit_dim < len(shape):
            raise ValueError(
                f"site {site!r}: expected a weight with dimension {self.unit_dim} for its units, got shape {shape}; "
                f"give {type(self).__name__} another unit_dim"
            )

    def _units(self, site: str, dim: int) -> int:
        """The dimension of the weight at ``site`` that is ``dim`` in the order (output, input, *spatial).

        The weights of flax have their units last; those of a model without a BayesianModule are taken as they are.
        """
        dims = self.prototype_trace[site]["infer"].get("unit_dims", (0, 1))
        return dims[dim] if dim in (0, 1) else dim

    def _known(self, site: str) -> str:
        if site not in self.weight_sites:
            raise ValueError(f"site: expected one of the weight sites {list(self.weight_sites)}, got {site!r}")
        return site

    @property
    def _learned(self) -> dict[str, Array]:
        return {name: value for name, value in self._starts.items() if name not in self._fixed}

    def _parameter(self, quantity: str, site: str) -> str:
        return f"{self.prefix}.{quantity}.{site}"

    def _store(self, quantity: str, site: str, value: Array, learnable: bool = True) -> None:
        """Start a parameter, or keep a constant, under the name of ``quantity`` at ``site``."""
        name = self._parameter(quantity, site)
        self._starts[name] = value
        if not learnable:
            self._fixed.add(name)

    def _read(self, params: Params, quantity: str, site: str) -> Array:
        name = self._parameter(quantity, site)
        if name not in params and name not in self._fixed:
            raise ValueError(
                f"params: expected the parameters of this {type(self).__name__}, with {name!r}, got {sorted(params)}; "
                "write svi.get_params(svi_state)"
            )
        value = self._starts[name] if name in self._fixed else params[name]
        check_precision(f"parameter {name!r}", "its value", value)
        return value


def projected(value: Array, projection: Array) -> Array:
    """The value of ``projection`` with the gradient of ``value``."""
    return value + jax.lax.stop_gradient(projection - value)


def _is_weight(message: Any) -> bool:
    return "net_parameter" in message["infer"] or isinstance(base_distribution(message["fn"]), ImproperLogUniform)
