"""The likelihoods of a model after one pass of moments, and draws of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import quax
from jax import Array
from numpyro.distributions import Unit
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.primitives import Messenger

from pyro_vd.common.predictions import wanted_sites
from pyro_vd.common.structure import Structure
from pyro_vd.numpyro.checks import check_parameter_sites
from pyro_vd.numpyro.handlers import base_distribution, center
from pyro_vd.numpyro.posteriors import DropoutNormal, WeightPosterior
from pyro_vd.numpyro.predict.moments import GaussianArray, Pass, drawn
from pyro_vd.numpyro.predict.programs import program_of
from pyro_vd.numpyro.predict.stacking import is_along, take_apart


class OnePass:
    """A model at the moments of its guide.

    Args:
        params: parameters of model and guide.
        model: a NumPyro model.
        guided: a run of the guide.
        latent: the messages of its sites.
        sites: names to keep; all if empty.
        on_unknown: "error" or "sample", where a weight has noise that its elements share, or an operation no rule.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        model: Callable,
        guided: Mapping[str, Any],
        latent: Mapping[str, Any],
        sites: Collection[str],
        on_unknown: str,
    ):
        self.params, self.model, self.guided, self.latent = dict(params), model, guided, latent
        self.sites, self.on_unknown = sites, on_unknown
        # Of each site the structure, and whether the examples of every piece lie along its first axis.
        self.likelihoods: dict[str, tuple[Structure, bool]] = {}
        self.sampled = False

    def draws(self, key: Array, length: int, number: int, args: tuple, kwargs: dict) -> dict[str, list[Array]]:
        """``number`` draws of the parameters of each likelihood at ``length`` examples, the draws first."""

        def one(key: Array, number: int) -> dict[str, list[Array]]:
            pass_key, *keys = jax.random.split(key, 2)
            of = Pass(pass_key, self.on_unknown)
            run: Any = quax.quaxify(lambda values: self._run(values, args, kwargs, pass_key, length))
            parameters = run(self._values(of))
            self.sampled = bool(of.sampled)
            flat, structure = jax.tree.flatten(parameters, is_leaf=lambda leaf: isinstance(leaf, GaussianArray))
            return structure.unflatten(drawn(flat, number, keys[0]))

        jax.eval_shape(lambda key: one(key, 1), key)
        if not self.sampled:
            return program_of(lambda key: one(key, number))(key)
        # An operation drew its input: each draw takes a pass of its own.
        passes = program_of(jax.vmap(lambda key: jax.tree.map(lambda a: a[0], one(key, 1))))
        return passes(jax.random.split(key, number))

    def _values(self, of: Pass) -> dict[str, Any]:
        """The values at the sites of the guide: a Gaussian for a weight, the mean of any other.

        A plain ``Normal`` of two event dimensions or more, outside of plates, is a weight as well.
        """
        values = {}
        noises = [name for name, site in self.latent.items() if site["infer"].get("is_auxiliary")]
        for name, site in self.latent.items():
            posterior: Any = base_distribution(site["fn"])
            is_weight = isinstance(posterior, WeightPosterior)
            if type(posterior) is dist.Normal and _is_matrix(site) and name not in noises:
                posterior = DropoutNormal(posterior.loc, log_sigma2=2 * jnp.log(jnp.asarray(posterior.scale)))
            elif not is_weight and (name in noises or not _is_matrix(site)):
                values[name] = center(site["fn"])
                continue
            is_delta = isinstance(posterior, dist.Delta)
            if is_delta and not noises:
                values[name] = center(site["fn"])
                continue
            noise = posterior.noise() if isinstance(posterior, WeightPosterior) else None
            if noise is not None and noise.independent:
                variance = jnp.zeros_like(noise.loc) if noise.variance is None else noise.variance
                values[name] = GaussianArray(noise.loc, variance.astype(noise.loc.dtype), of, weight=True)
            elif is_delta or of.on_unknown == "error":
                shared = type(posterior).__name__ + (", whose elements share noise" if noise is not None else "")
                other = "" if is_delta else 'on_unknown="sample" to draw it once a pass, or '
                raise ValueError(
                    f'site {name!r}: expected a weight whose elements are independent Gaussians for mode="moments", '
                    f'got {f"a Delta of the sites {noises}" if is_delta else shared}; write {other}mode="weights"'
                )
            else:
                key = of.next_key(name)
                values[name] = site["fn"].sample(key) if noise is None else noise.draw(key)
        return values

    def _run(
        self, values: Mapping[str, Any], args: tuple, kwargs: dict, key: Array, length: int
    ) -> dict[str, list[Any]]:
        given: Any = {name: {**self.latent[name], "value": value} for name, value in values.items()}
        model: Any = substitute(replay(seed(self.model, key), given), data=self.params)
        with numpyro.validation_enabled(False):
            ran = trace(_Unsampled(model)).get_trace(*args, **kwargs)
            check_parameter_sites("predictive_distribution", self.params, self.guided, ran)
            predicted = {
                name: site["fn"]
                for name, site in ran.items()
                if site["type"] == "sample" and name not in values and not isinstance(site["fn"], Unit)
            }
            kept = {}
            for name in wanted_sites(self.sites, predicted, values):
                structure, kept[name] = take_apart(predicted[name])
                along = is_along(name, predicted[name], length) and self.likelihoods.get(name, (None, True))[1]
                self.likelihoods[name] = structure, along
        return kept


def _is_matrix(site: Any) -> bool:
    """Whether a site has two event dimensions or more and no plate, as a weight has."""
    return site["fn"].event_dim >= 2 and not site["fn"].batch_shape and not site["cond_indep_stack"]


class _Unsampled(Messenger):
    """Puts a placeholder at every site without a value, since a sample has no value in one pass of moments."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["value"] is None and not isinstance(msg["fn"], Unit):
            msg["value"] = NotSampled(msg["name"])


class NotSampled:
    """Stands for a sample until something is done with it."""

    def __init__(self, site: str):
        self.site = site

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__jax_array__", "__array__"):
            raise AttributeError(name)
        raise self._error()

    def _error(self, *others: Any) -> ValueError:
        return ValueError(
            f"site {self.site!r}: expected a model that returns what it predicts, got one that goes on to use it, "
            'which has no value in one pass of moments; write mode="weights"'
        )

    def _used(self, *others: Any) -> Any:
        raise self._error()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _used
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __abs__ = _used
    __lt__ = __le__ = __gt__ = __ge__ = __getitem__ = __iter__ = __len__ = __float__ = __bool__ = _used
    __eq__ = __ne__ = __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = __pos__ = _used
    __int__ = __index__ = __complex__ = __round__ = __divmod__ = __rdivmod__ = __contains__ = __call__ = _used
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __trunc__ = __floor__ = __ceil__ = _used
    __setitem__ = __reversed__ = _used
    __hash__ = object.__hash__
