"""The base of every guide of random weights: which sites it covers, where it starts, how it samples."""

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
from numpyro.infer.autoguide import AutoGuide

from pyro_vd.common.choice import check_matched
from pyro_vd.common.choice import matcher as site_matcher
from pyro_vd.common.guide_options import check_site, sites_to_set
from pyro_vd.common.predictions import check_quantiles
from pyro_vd.common.shapes import check_sizes
from pyro_vd.guides.base import Where
from pyro_vd.guides.numpyro.coverage import check_weights, covered_sites, is_weight, plate_sizes, unit_dim
from pyro_vd.guides.numpyro.nets import forget_start, known_weights, nets_of
from pyro_vd.guides.numpyro.other_site import OtherSite, other_sites
from pyro_vd.guides.numpyro.parameters import Parameters, Params, projection_by
from pyro_vd.guides.numpyro.quantiles import weight_quantiles
from pyro_vd.guides.numpyro.starts import init_to_net_value, seen, started
from pyro_vd.numpyro._jax import is_traced
from pyro_vd.numpyro._numpyro import current_key, handlers_are_active, note_plates
from pyro_vd.numpyro.arguments import check_data, check_finite, check_params, require_key
from pyro_vd.numpyro.checks import latent_sites
from pyro_vd.numpyro.posteriors import WeightPosterior


class WeightGuide(AutoGuide):
    """Abstract: a mean-field automatic guide with a :class:`WeightPosterior` at every weight site.

    Weight sites are those of a :class:`pyro_vd.numpyro.BayesianModule`, those with the improper log-uniform prior,
    and those that ``where`` names. Without ``where``, every other latent site (a noise scale, say) is covered as
    NumPyro's ``AutoNormal`` does it, with a KL estimated from its draw; with ``where``, only the sites it matches are,
    and several guides are combined by :func:`pyro_vd.guides.numpyro.mixed_guide`. A site without an observation in a
    minibatch (inside a :func:`pyro_vd.numpyro.data_plate`, or a plate that subsamples) is the model's to predict, and
    never covered. The parameters are named ``f"{prefix}.{quantity}.{site}"``; whatever reads them takes ``params``, as
    ``svi.get_params`` returns them. The weights of a bound net are known before the first call.

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
        self._named, self._where = where, None if where is None else site_matcher(where)
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn, create_plates=create_plates)
        self._weights: dict[str, Any] = {}  # messages of the weight sites
        self._others: dict[str, OtherSite] = {}
        self._parameters = Parameters(type(self).__name__, prefix)
        self._drawn_nets: list[Any] | None = None  # by a run with parameters given

    @property
    def weight_sites(self) -> tuple[str, ...]:
        """Names of the sites that are random weights, in model order; before the first call those of its nets.

        Raises:
            ValueError: before the first call, where the model refers to no net, or to one that is not bound yet.
        """
        self._know_weights()
        return tuple(self._weights)

    @abstractmethod
    def posterior(self, params: Params, site: str) -> WeightPosterior:
        """The distribution of the weight at ``site``, without ``to_event``, from these parameters."""

    @abstractmethod
    def _init_weight(self, site: str, value: Array, message: Any) -> None:
        """Make the parameters of one weight site, its mean starting at ``value``."""

    def posteriors(self, params: Params) -> dict[str, WeightPosterior]:
        """The distribution of every weight site.

        Args:
            params: as ``svi.get_params`` returns them; those of the model may be among them.

        Raises:
            ValueError: a parameter is missing, has another shape, or is of another family of guides.
            TypeError: ``params`` is not a mapping from names to arrays.
        """
        self._check_given(params)
        return {site: self.posterior(params, site) for site in self.weight_sites}

    def log_alpha(self, params: Params, site: str) -> Array:
        """Natural log of the noise ratio at ``site``, of a shape that broadcasts with the weight.

        One value per weight, per unit (size 1 along the other axes) or per layer, as the family has it.

        Raises:
            ValueError: not a weight site of this guide.
        """
        return self.posterior(check_params(type(self).__name__, params), self._known(site)).log_alpha

    def dropout_rate(self, params: Params, site: str) -> Array:
        """Probability of dropping with the noise ratio of ``site``, ``alpha / (1 + alpha)``; shape as ``log_alpha``."""
        return jax.nn.sigmoid(self.log_alpha(params, site))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Sample every site; returns a dict from site name to value."""
        if self.prototype_trace is None or (self._drawn_nets is not None and not self._are_given()):
            self._look(args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        params = {name: numpyro.param(name, value) for name, value in self._parameters.learned.items()}
        result: dict[str, Any] = {}
        for site in self._order:  # in the order of the model: other ELBOs take another order for dependence
            other, message = self._others.get(site), self._weights.get(site)
            with ExitStack() as stack:
                for frame in other.frames if message is None else message["cond_indep_stack"]:  # type: ignore
                    stack.enter_context(plates[frame.name])
                if other is not None:
                    result[site] = other.sample()
                    continue
                assert message is not None
                posterior = self.posterior(params, site)
                result[site] = numpyro.sample(site, posterior.to_event(message["fn"].event_dim - posterior.event_dim))
        if any(map(is_traced, jax.tree.leaves([self._parameters.starts, list(self._others.values())]))):
            # The first call was traced: what it found is invalid after the trace.
            self.prototype_trace, self._weights = None, {}
        return result

    def median(self, params: Params) -> dict[str, Array]:
        """The posterior mean of every weight, and the median of every other site."""
        medians: dict[str, Any] = {site: posterior.mean for site, posterior in self.posteriors(params).items()}
        medians |= {name: other.median(params) for name, other in self._others.items()}
        return {site: medians[site] for site in self._sites(params)}

    def quantiles(self, params: Params, quantiles: Any) -> dict[str, Array]:
        """Quantiles of every element of every site, shape ``(number of quantiles, *shape of the site)``.

        Args:
            params: as ``svi.get_params`` returns them.
            quantiles: one probability or several, between 0 and 1.

        Raises:
            ValueError: a site without a closed form, such as a weight with Bernoulli dropout.
        """
        probabilities = check_quantiles(quantiles)
        found = {site: weight_quantiles(site, q, probabilities) for site, q in self.posteriors(params).items()}
        found |= {name: other.quantiles(params, probabilities) for name, other in self._others.items()}
        return {site: found[site] for site in self._sites(params)}

    def sample_posterior(
        self, rng_key: Array, params: Params, *args: Any, sample_shape: tuple[int, ...] = (), **kwargs: Any
    ) -> dict[str, Any]:
        """Draws of every site, shape ``sample_shape + shape of the site``; coherent weight draws."""
        require_key(f"{type(self).__name__}.sample_posterior", rng_key)
        sample_shape = check_sizes(f"{type(self).__name__}.sample_posterior", "sample_shape", sample_shape, "(10,)")
        posteriors, order = self.posteriors(params), self._sites(params)
        keys = jax.random.split(rng_key, len(order))
        return {
            site: posteriors[site].sample(key, sample_shape)
            if site in posteriors
            else self._others[site].sample_posterior(key, params, sample_shape)
            for site, key in zip(order, keys, strict=True)
        }

    def set_learnable(
        self, quantity: str, learnable: bool = True, where: Where = None, *, params: Params | None = None
    ) -> None:
        """Make a quantity a trained parameter, or a constant of the guide, keeping its value.

        Call ``svi.init`` again afterwards, since the parameters have changed. With ``params`` the others of this guide
        keep their values too.

        Args:
            quantity: name of a quantity of this guide, such as "locs", "log_sigma2s" or "log_alphas".
            learnable: parameter or constant.
            where: sites, as in the constructor; all weight sites if None.
            params: parameters whose values are to be kept; those the guide starts from if None.

        Raises:
            ValueError: no such quantity; one without a gradient.
        """
        sites = sites_to_set(quantity, learnable, where, self.weight_sites, self._parameters.quantities)
        if learnable and quantity in self.never_learnable:
            raise ValueError(f"set_learnable: {quantity!r} of {type(self).__name__} {self.never_learnable[quantity]}")
        self._parameters.set_learnable(quantity, sites, learnable, params)

    def project(self, params: Params) -> dict[str, Any]:
        """The parameters as this guide reads them: within the bounds that its family has, if any."""
        return dict(params)

    def projection(self) -> optax.GradientTransformation:
        """An optax transformation that keeps the parameters within the bounds of the family, step by step.

        Last in the optimizer: ``optax.chain(optax.adam(1e-3), guide.projection())``. Without it a parameter that a
        step took over its bound is read as the bound, but has to come back by as many steps as took it away.
        """
        return projection_by(self.project)

    def _look(self, args: tuple, kwargs: dict) -> None:
        """Run the model to see its sites. A run with given parameters predicts, and training runs it again."""
        forget_start(self._drawn_nets or ())
        unbound = [net for net in nets_of(self.model) if not net.priors]
        self._setup_prototype(*args, **kwargs)
        self._drawn_nets = unbound if self._are_given() else None

    def _are_given(self) -> bool:
        """Whether handlers around this call give the parameters."""
        return handlers_are_active() and any(numpyro.param(name) is not None for name in self._parameters.learned)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        key = require_key(type(self).__name__, current_key())
        check_data(type(self).__name__, args, kwargs)
        program = started(self.model, key, self.init_loc_fn)
        trace = seen(program, args, kwargs)
        check_matched(type(self).__name__, self._named, dict(latent_sites(trace)))
        latent = covered_sites(program, trace, self._where, args, kwargs)
        covered = self._where or (lambda name: is_weight(latent[name]))
        self._cover({name: message for name, message in latent.items() if covered(name)}, list(latent), key)
        rest = [] if self._where is not None else [name for name in latent if name not in self._weights]
        self._others = other_sites(type(self).__name__, self.prefix, program, trace, rest, args, kwargs)
        self._order = tuple(name for name in latent if name in self._weights or name in self._others)
        frames = {frame.name: frame for name in self._order for frame in latent[name]["cond_indep_stack"]}
        note_plates(self, frames, plate_sizes(trace))
        self.prototype_trace = trace

    def _know_weights(self) -> None:
        """Before the model has been seen: the weights of the nets that it refers to."""
        if self._weights:
            return
        known = known_weights(type(self).__name__, self.model, self._where)
        self._cover(known, list(known), jax.random.key(0))

    def _cover(self, weights: dict[str, Any], latent: list[str], key: Array) -> None:
        """Make the parameters of every weight."""
        check_weights(type(self).__name__, self.unit_dim, weights, latent, self._where is None)
        self._weights = weights
        self._parameters.starts, self._parameters.fixed = {}, set()
        self._init_keys = dict(zip(weights, jax.random.split(jax.random.fold_in(key, 1), len(weights)), strict=True))
        try:
            with jax.ensure_compile_time_eval():
                for site, message in weights.items():
                    self._init_weight(site, jnp.asarray(message["value"]), message)
        except Exception:
            self._weights = {}
            raise

    def _units(self, site: str, dim: int) -> int:
        """The dimension of the weight at ``site`` that is ``dim`` in the order (output, input, *spatial).

        The weights of flax have their units last; those of a model without a BayesianModule are taken as they are.
        """
        return unit_dim(site, self._weights[site], dim)

    def _known(self, site: str) -> str:
        self._know_weights()
        return check_site(site, self.weight_sites)

    def _parameter(self, quantity: str, site: str) -> str:
        return self._parameters.name(quantity, site)

    def _store(self, quantity: str, site: str, value: Array, learnable: bool = True) -> None:
        """Start a parameter, or keep a constant, under the name of ``quantity`` at ``site``."""
        self._parameters.store(quantity, site, value, learnable)

    def _read(self, params: Params, quantity: str, site: str) -> Array:
        self._know_weights()
        return self._parameters.read(params, quantity, site)

    def _check_given(self, params: Params) -> None:
        """Raise for parameters of another family, and for those of weights that have not been seen yet."""
        check_finite(type(self).__name__, check_params(type(self).__name__, params))
        self._know_weights()
        self._parameters.check_family(params, self._weights)
        if self.prototype_trace is None:
            self._parameters.check_seen(params, self._weights, self._where)

    def _sites(self, params: Params) -> tuple[str, ...]:
        """All sites in order; before the first call those of the nets, where there can be no other."""
        if self.prototype_trace is None:
            self._parameters.check_no_other(params)
        return self.weight_sites if self.prototype_trace is None else self._order
