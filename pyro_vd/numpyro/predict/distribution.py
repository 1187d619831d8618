"""p(y | x, data) = mean over draws of p(y | x, weights of the draw): the posterior predictive as a mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp, xlogy

from pyro_vd.common.examples import is_array
from pyro_vd.common.predictions import SAMPLES, check_probability, check_shape, several_draws
from pyro_vd.numpyro.arguments import require_key
from pyro_vd.numpyro.checks import describe
from pyro_vd.numpyro.predict.mixtures import (
    as_sampled,
    entropies_of_density,
    has_cdf,
    in_support,
    mixture_cdf,
    mixture_quantile,
    outcomes,
)
from pyro_vd.numpyro.predict.stacking import take_apart

_CATEGORICAL = (dist.CategoricalLogits, dist.CategoricalProbs)
_CLASSES = (*_CATEGORICAL, dist.BernoulliLogits, dist.BernoulliProbs)
_NUMBERS = "mean, variance, stddev, aleatoric_variance, epistemic_variance"


@dataclass(frozen=True, eq=False)
class Predictive:
    """The posterior predictive distribution of one site: an equal mixture of its likelihood over draws.

    ``log p(y) = logsumexp over draws of log p(y | draw) - log(number of draws)``

    Shapes are those of the site in the model, batch (examples) first; entropies in nats. A mask on the likelihood
    counts in ``log_prob`` alone. Of a site with several elements an example (``to_event``), ``mean``, ``variance``
    and ``interval`` are those of each element.

    Args:
        draws: the likelihood, the draws as its first batch axis: ``draws.batch_shape == (draws, *batch)``.
        site: the name of the sample site.

    Raises:
        ValueError: by a quantity that the likelihood does not have, with a list of those that it has; by one that is
            not defined, where it would be NaN; by a value of another shape or outside the support.

    Example:
        >>> draws = dist.Categorical(probs=jnp.array([[[0.75, 0.25]], [[0.25, 0.75]]]))  # 2 draws, 1 example, 2 classes
        >>> y = Predictive(draws, "y")
        >>> y.probs.tolist(), f"{jnp.exp(y.log_prob(jnp.array([1])))[0]:.4f}"
        ([[0.5, 0.5]], '0.5000')
        >>> [f"{part[0]:.4f}" for part in (y.entropy(), y.expected_entropy(), y.mutual_information())]
        ['0.6931', '0.5623', '0.1308']

    References:
        Depeweg et al. 2018, arXiv:1710.07283, equations 4-6, for the parts of entropy and of variance.

    See also:
        :func:`pyro_vd.numpyro.predictive_distribution`, :func:`pyro_vd.numpyro.to_arviz`.
    """

    draws: Any
    site: str

    @property
    def num_samples(self) -> int:
        """Number of draws."""
        return self.draws.batch_shape[0]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """That of the site: the examples."""
        return tuple(self.draws.batch_shape[1:])

    @property
    def event_shape(self) -> tuple[int, ...]:
        """That of one value of one example."""
        return tuple(self.draws.event_shape)

    def __repr__(self) -> str:
        shapes = f"batch {self.batch_shape}, event {self.event_shape}"
        return f"Predictive({self.site!r}: {describe(self.draws)}, {self.num_samples} draws, {shapes})"

    def log_prob(self, value: Array) -> Array:
        """Log of the mean over draws of the likelihood, per example, in nats; summed over the event.

        Args:
            value: shape ``(*samples, *batch, *event)``.
        """
        return logsumexp(self.log_likelihood(value), -len(self.batch_shape) - 1) - math.log(self.num_samples)

    def log_likelihood(self, value: Array) -> Array:
        """Log of the likelihood of every draw, nats, shape ``(*samples, draws, *batch)``; -inf outside its support."""
        value = self._checked(value)
        value = jnp.expand_dims(value, value.ndim - len(self.batch_shape + self.event_shape))
        with numpyro.validation_enabled(False):  # a value may lie in the support of some draws alone
            log_probs = self.draws.log_prob(value)
        allowed = jnp.broadcast_to(in_support(self.draws, value), log_probs.shape)
        outside = int((~allowed.any(-len(self.batch_shape) - 1)).sum())
        if outside:
            raise ValueError(
                f"site {self.site!r}: expected values in the support of {describe(self.draws)}, got {outside} of "
                f"{value.size // max(1, math.prod(self.event_shape))} outside it in every draw, or NaN"
            )
        return self._defined("log_prob", jnp.where(allowed, log_probs, -jnp.inf))

    def sample(self, rng_key: Array, sample_shape: Any = ()) -> Array:
        """Values, shape ``(*sample_shape, *batch, *event)``; each takes one draw for all examples: one function."""
        draw_key, value_key = jax.random.split(require_key(f"site {self.site!r}", rng_key))
        sample_shape = several_draws(self.site, sample_shape)
        structure, arrays = take_apart(self.draws)
        which = jax.random.randint(draw_key, (math.prod(sample_shape),), 0, self.num_samples)
        drawn = structure.build([array[which] for array in arrays]).sample(value_key)
        return drawn.reshape(sample_shape + self.batch_shape + self.event_shape)

    @cached_property
    def probs(self) -> Array:
        """Probability of each class, shape ``(*batch, classes)``; of a Bernoulli that of 1, ``(*batch, *event)``."""
        if not isinstance(self._elements, _CLASSES):
            raise self._without("probabilities of classes", "log_prob(value).exp() for those of a value")
        elements: Any = self._elements
        return self._defined("probs", elements.probs).mean(0)

    @cached_property
    def mean(self) -> Array:
        """Mean of the predictive distribution, shape ``(*batch, *event)``."""
        return self._number("mean").mean(0)

    @property
    def variance(self) -> Array:
        """Variance of the predictive distribution: the aleatoric and the epistemic part."""
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def stddev(self) -> Array:
        """Standard deviation of the predictive distribution."""
        return jnp.sqrt(self.variance)

    @cached_property
    def aleatoric_variance(self) -> Array:
        """Mean over draws of the variance of the likelihood: the part that more data does not reduce."""
        return self._number("variance").mean(0)

    @cached_property
    def epistemic_variance(self) -> Array:
        """Variance over draws (divided by their number) of the likelihood's mean: the part that more data reduces."""
        return self._number("mean").var(0)

    def entropy(self) -> Array:
        """Entropy of the predictive distribution, nats, per example: ``-sum over y of p(y) * log p(y)``.

        Exact for a likelihood with a finite support (over all combinations of elements of an event, where these are
        4,096 or fewer). For one real number whose likelihood has an inverse cdf, by quadrature (to 1e-6 for
        Gaussians in float64), whose time grows with the square of the number of draws. In other cases an error.
        """
        return self._entropies[0]

    def expected_entropy(self) -> Array:
        """Mean over draws of the entropy of the likelihood, nats, per example: the aleatoric part."""
        try:
            return self._defined("entropy", self._unmasked.entropy()).mean(0)
        except NotImplementedError:
            return self._entropies[1]

    def mutual_information(self) -> Array:
        """Between the value and the weights, nats, per example: ``entropy - expected_entropy``, the epistemic part."""
        return jnp.maximum(self.entropy() - self.expected_entropy(), 0.0)

    def cdf(self, value: Array) -> Array:
        """Probability of at most ``value``, of each element, shape ``(*batch, *event)``; found as quantiles are."""
        if isinstance(self._elements, _CATEGORICAL):
            raise self._without("an order of its values", "probs")
        if jnp.isnan(value := self._checked(value, sampled=False)).any():
            raise ValueError(f"site {self.site!r}: expected numbers, got NaN; take them out")
        if self.quantile_method == "bisection":
            return mixture_cdf(self._elements, value)
        return (self._samples <= value).mean(0)

    def quantile(self, probability: float) -> Array:
        """The value below which ``probability`` of the predictive distribution lies, shape ``(*batch, *event)``.

        By bisection of the mixture's cdf, to the last digit, where the likelihood has one; else from 4,000 samples
        of a fixed key (``quantile_method`` says which).
        """
        check_probability(probability)
        if isinstance(self._elements, _CATEGORICAL):
            raise self._without("an order of its values", "probs")
        if self.quantile_method == "bisection":
            return mixture_quantile(self._elements, probability)
        return self._samples[math.ceil(probability * SAMPLES) - 1]

    def interval(self, probability: float = 0.9) -> tuple[Array, Array]:
        """The central interval that holds ``probability``: its lower and upper end, each of shape ``(*batch, *event)``.

        Args:
            probability: of which half of the rest lies on either side.
        """
        check_probability(probability)
        return self.quantile(0.5 - probability / 2), self.quantile(0.5 + probability / 2)

    @cached_property
    def quantile_method(self) -> str:
        """How quantiles are found: "bisection" of the cdf, or "samples"."""
        for array in take_apart(self._elements)[1]:
            self._defined("cdf or quantile", array)
        return "bisection" if has_cdf(self._elements) else "samples"

    @cached_property
    def _samples(self) -> Array:
        return jnp.sort(self.sample(jax.random.key(0), (SAMPLES,)), 0)

    @property
    def _unmasked(self) -> Any:
        draws = self.draws
        while isinstance(draws, dist.MaskedDistribution):
            draws = draws.base_dist
        return draws

    @property
    def _elements(self) -> Any:
        """The distribution of each element of an event by itself, one draw a row."""
        draws = self._unmasked
        while isinstance(draws, (dist.Independent, dist.MaskedDistribution)):
            draws = draws.base_dist
        if isinstance(draws, (dist.MultivariateNormal, dist.LowRankMultivariateNormal)):
            variance: Any = draws.variance
            return dist.Normal(draws.mean, jnp.sqrt(variance))
        return draws

    def _checked(self, value: Any, sampled: bool = True) -> Array:
        if not is_array(value):
            raise TypeError(f"site {self.site!r}: expected an array, got {type(value).__name__}; write jnp.array(...)")
        check_shape(self.site, value, self.batch_shape + self.event_shape, sampled)
        return as_sampled(jnp.asarray(value), isinstance(self._elements, _CATEGORICAL))

    def _number(self, name: str) -> Array:
        if isinstance(self._elements, _CATEGORICAL):
            raise self._without(f"a {name}", "probs")
        try:
            value = getattr(self._unmasked, name)
        except NotImplementedError:
            raise self._without(f"a {name}", "sample(rng_key, shape)") from None
        return self._defined(name, value)

    @property
    def _has_moments(self) -> bool:
        try:
            return self._unmasked.variance is not None
        except NotImplementedError:
            return False

    def _defined(self, name: str, value: Array) -> Array:
        bad = int(jnp.isnan(value).sum())
        if bad:
            where = f"at draws.{name}, or ask for quantile(0.5) or sample(rng_key, shape)"
            where = "for NaN in its parameters" if name in ("log_prob", "cdf or quantile") else where
            raise ValueError(
                f"site {self.site!r}: expected a likelihood whose {name} is defined, got NaN in {bad} of "
                f"{value.size} values of {describe(self.draws)} (draws included); look {where}"
            )
        return value

    @cached_property
    def _entropies(self) -> tuple[Array, Array]:
        """Of the mixture, and the mean over draws."""
        draws = self._unmasked
        found = outcomes(draws)
        if found is not None:
            log_probs = draws.log_prob(found)  # (outcomes, draws, *batch)
            mixture, each = jnp.exp(logsumexp(log_probs, 1)) / self.num_samples, jnp.exp(log_probs)
            return self._defined("entropy", -xlogy(mixture, mixture).sum(0)), -xlogy(each, each).sum(0).mean(0)
        entropies = entropies_of_density(draws)
        if entropies is None:
            raise self._without(
                "an entropy of the mixture in closed form or by quadrature",
                "-log_prob(sample(rng_key, (1000,))).mean(0), its Monte Carlo estimate",
            )
        return self._defined("entropy", entropies[0]), self._defined("entropy", entropies[1])

    def _without(self, quantity: str, instead: str) -> ValueError:
        names = ["log_prob", "sample"]
        if isinstance(self._elements, _CLASSES):
            names.append("probs")
        if not isinstance(self._elements, _CATEGORICAL):
            names += [_NUMBERS, "cdf, quantile, interval"] if self._has_moments else ["cdf, quantile, interval"]
        if outcomes(self._unmasked) is not None or entropies_of_density(self._unmasked) is not None:
            names.append("entropy, expected_entropy, mutual_information")
        return ValueError(
            f"site {self.site!r}: expected a likelihood with {quantity}, got {describe(self.draws)}; there is "
            f"{', '.join(names)}; write {instead}"
        )
