"""p(y | x, data) = mean over draws of p(y | x, weights of the draw): the posterior predictive as a mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, LowRankMultivariateNormal, MultivariateNormal

from pyro_vd.checks import describe
from pyro_vd.common.predictions import SAMPLES, check_probability, check_shape, several_draws
from pyro_vd.predict.outcomes import as_sampled, entropies_of_density, in_support, outcomes
from pyro_vd.predict.quantiles import has_cdf, mixture_cdf, mixture_quantile, sample_quantile, unmoved
from pyro_vd.predict.stacking import take_apart

_CLASSES = (Categorical, torch.distributions.OneHotCategorical, torch.distributions.Bernoulli)
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
        >>> draws = dist.Categorical(probs=torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]))  # 2 draws, 1 example, 2 classes
        >>> y = Predictive(draws, "y")
        >>> y.probs, y.log_prob(torch.tensor([1])).exp()
        (tensor([[0.5000, 0.5000]]), tensor([0.5000]))
        >>> y.entropy(), y.expected_entropy(), y.mutual_information()
        (tensor([0.6931]), tensor([0.3251]), tensor([0.3681]))

    References:
        Depeweg et al. 2018, arXiv:1710.07283, equations 4-6, for the parts of entropy and of variance.

    See also:
        :func:`pyro_vd.predictive_distribution`, :func:`pyro_vd.to_arviz`, :func:`pyro_vd.metrics.calibration_error`.
    """

    draws: Any
    site: str

    @property
    def num_samples(self) -> int:
        """Number of draws."""
        return self.draws.batch_shape[0]

    @property
    def batch_shape(self) -> torch.Size:
        """That of the site: the examples."""
        return torch.Size(self.draws.batch_shape[1:])

    @property
    def event_shape(self) -> torch.Size:
        """That of one value of one example."""
        return torch.Size(self.draws.event_shape)

    def __repr__(self) -> str:
        shapes = f"batch {tuple(self.batch_shape)}, event {tuple(self.event_shape)}"
        return f"Predictive({self.site!r}: {describe(self.draws)}, {self.num_samples} draws, {shapes})"

    @torch.no_grad()
    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the mean over draws of the likelihood, per example, in nats; summed over the event.

        Args:
            value: shape ``(*samples, *batch, *event)``.
        """
        log_probs = self.log_likelihood(value)
        return log_probs.logsumexp(-len(self.batch_shape) - 1) - math.log(self.num_samples)

    @torch.no_grad()
    def log_likelihood(self, value: Tensor) -> Tensor:
        """Log of the likelihood of every draw, nats, shape ``(*samples, draws, *batch)``; -inf outside its support."""
        value = self._checked(value)
        value = value.unsqueeze(value.dim() - len(self.batch_shape + self.event_shape))
        allowed = in_support(self.draws, value)
        outside = int((~allowed.any(-len(self.batch_shape) - 1)).sum())
        if outside:
            raise ValueError(
                f"site {self.site!r}: expected values in the support of {describe(self.draws)}, got {outside} of "
                f"{value.numel() // max(1, self.event_shape.numel())} outside it in every draw, or NaN"
            )
        with pyro.validation_enabled(False):  # a value may lie in the support of some draws alone
            log_probs = torch.where(allowed, self.draws.log_prob(value), -math.inf)
        return self._defined("log_prob", log_probs)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Values, shape ``(*sample_shape, *batch, *event)``; each takes one draw for all examples: one function."""
        sample_shape = torch.Size(several_draws(self.site, sample_shape))
        structure, tensors = take_apart(self.draws)
        which = torch.randint(self.num_samples, (sample_shape.numel(),), device=tensors[0].device)
        drawn = structure.build([tensor[which] for tensor in tensors]).sample()
        return drawn.reshape(sample_shape + self.batch_shape + self.event_shape)

    def to(self, device: Any) -> Predictive:
        """The same distribution on another device."""
        structure, tensors = take_apart(self.draws)
        return Predictive(structure.build([tensor.to(device) for tensor in tensors]), self.site)

    @cached_property
    def probs(self) -> Tensor:
        """Probability of each class, shape ``(*batch, classes)``; of a Bernoulli that of 1, ``(*batch, *event)``."""
        if not isinstance(self._elements, _CLASSES):
            raise self._without("probabilities of classes", "log_prob(value).exp() for those of a value")
        return self._defined("probs", self._elements.probs).mean(0)

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the predictive distribution, shape ``(*batch, *event)``."""
        return self._number("mean").mean(0)

    @property
    def variance(self) -> Tensor:
        """Variance of the predictive distribution: the aleatoric and the epistemic part."""
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of the predictive distribution."""
        return self.variance.sqrt()

    @cached_property
    def aleatoric_variance(self) -> Tensor:
        """Mean over draws of the variance of the likelihood: the part that more data does not reduce."""
        return self._number("variance").mean(0)

    @cached_property
    def epistemic_variance(self) -> Tensor:
        """Variance over draws (divided by their number) of the likelihood's mean: the part that more data reduces."""
        return self._number("mean").var(0, unbiased=False)

    def entropy(self) -> Tensor:
        """Entropy of the predictive distribution, nats, per example: ``-sum over y of p(y) * log p(y)``.

        Exact for a likelihood with a finite support (over all combinations of elements of an event, where these are
        4,096 or fewer). For one real number whose likelihood has an inverse cdf, by quadrature (to 1e-6 for
        Gaussians), whose time grows with the square of the number of draws. In other cases an error.
        """
        return self._entropies[0]

    def expected_entropy(self) -> Tensor:
        """Mean over draws of the entropy of the likelihood, nats, per example: the aleatoric part."""
        try:
            return self._defined("entropy", self._unmasked.entropy()).mean(0)
        except NotImplementedError:
            return self._entropies[1]

    def mutual_information(self) -> Tensor:
        """Between the value and the weights, nats, per example: ``entropy - expected_entropy``, the epistemic part."""
        return (self.entropy() - self.expected_entropy()).clamp_min(0.0)

    @torch.no_grad()
    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``, of each element, shape ``(*batch, *event)``; found as quantiles are."""
        if isinstance(self._elements, Categorical):
            raise self._without("an order of its values", "probs")
        if (value := self._checked(value, sampled=False)).isnan().any():
            raise ValueError(f"site {self.site!r}: expected numbers, got NaN; take them out")
        if self.quantile_method == "bisection":
            return mixture_cdf(self._elements, value)
        return (self._samples <= value).to(torch.get_default_dtype()).mean(0)

    @torch.no_grad()
    def quantile(self, probability: float) -> Tensor:
        """The value below which ``probability`` of the predictive distribution lies, shape ``(*batch, *event)``.

        By bisection of the mixture's cdf, to the last digit, where the likelihood has one; else from 4,000 samples
        (``quantile_method`` says which).
        """
        check_probability(probability)
        if isinstance(self._elements, Categorical):
            raise self._without("an order of its values", "probs")
        if self.quantile_method == "bisection":
            return mixture_quantile(self._elements, probability)
        return sample_quantile(self._samples, probability)

    def interval(self, probability: float = 0.9) -> tuple[Tensor, Tensor]:
        """The central interval that holds ``probability``: its lower and upper end, each of shape ``(*batch, *event)``.

        Args:
            probability: of which half of the rest lies on either side.
        """
        check_probability(probability)
        return self.quantile(0.5 - probability / 2), self.quantile(0.5 + probability / 2)

    @cached_property
    def quantile_method(self) -> str:
        """How quantiles are found: "bisection" of the cdf, or "samples"."""
        for tensor in take_apart(self._elements)[1]:
            self._defined("cdf or quantile", tensor)
        return "bisection" if has_cdf(self._elements) else "samples"

    @cached_property
    def _samples(self) -> Tensor:
        with unmoved(self.draws):
            return self.sample((SAMPLES,)).sort(0).values

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
        while isinstance(draws, (Independent, dist.MaskedDistribution)):
            draws = draws.base_dist
        if isinstance(draws, (MultivariateNormal, LowRankMultivariateNormal)):
            return dist.Normal(draws.mean, draws.variance.sqrt(), validate_args=False)
        return draws

    def _checked(self, value: Any, sampled: bool = True) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"site {self.site!r}: expected a tensor, got {type(value).__name__}; write torch.tensor(...)"
            )
        check_shape(self.site, value, self.batch_shape + self.event_shape, sampled)
        return as_sampled(self.draws, value)

    def _number(self, name: str) -> Tensor:
        if isinstance(self._elements, Categorical):
            raise self._without(f"a {name}", "probs")
        try:
            value = getattr(self._unmasked, name)
        except NotImplementedError:
            raise self._without(f"a {name}", "sample(shape)") from None
        return self._defined(name, value)

    @property
    def _has_moments(self) -> bool:
        try:
            return self._unmasked.variance is not None
        except NotImplementedError:
            return False

    def _defined(self, name: str, value: Tensor) -> Tensor:
        bad = int(value.isnan().sum())
        if bad:
            where = f"at draws.{name}, or ask for quantile(0.5) or sample(shape)"
            where = "for NaN in its parameters" if name in ("log_prob", "cdf or quantile") else where
            raise ValueError(
                f"site {self.site!r}: expected a likelihood whose {name} is defined, got NaN in {bad} of "
                f"{value.numel()} values of {describe(self.draws)} (draws included); look {where}"
            )
        return value

    @cached_property
    def _entropies(self) -> tuple[Tensor, Tensor]:
        """Of the mixture, and the mean over draws."""
        draws = self._unmasked
        found = outcomes(draws)
        if found is not None:
            log_probs = draws.log_prob(found)  # (outcomes, draws, *batch)
            mixture = log_probs.logsumexp(1) - math.log(self.num_samples)
            each = -torch.xlogy(log_probs.exp(), log_probs.exp()).sum(0).mean(0)
            return self._defined("entropy", -torch.xlogy(mixture.exp(), mixture.exp()).sum(0)), each
        entropies = entropies_of_density(draws)
        if entropies is None:
            raise self._without(
                "an entropy of the mixture in closed form or by quadrature",
                "-log_prob(sample((1000,))).mean(0), its Monte Carlo estimate",
            )
        return self._defined("entropy", entropies[0]), self._defined("entropy", entropies[1])

    def _without(self, quantity: str, instead: str) -> ValueError:
        names = ["log_prob", "sample"]
        if isinstance(self._elements, _CLASSES):
            names.append("probs")
        if not isinstance(self._elements, Categorical):
            names += [_NUMBERS, "cdf, quantile, interval"] if self._has_moments else ["cdf, quantile, interval"]
        if outcomes(self._unmasked) is not None or entropies_of_density(self._unmasked) is not None:
            names.append("entropy, expected_entropy, mutual_information")
        return ValueError(
            f"site {self.site!r}: expected a likelihood with {quantity}, got {describe(self.draws)}; there is "
            f"{', '.join(names)}; write {instead}"
        )
