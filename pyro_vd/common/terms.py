"""The terms of a loss: what every ELBO of this library returns, on either backend."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LossTerms:
    """The terms of one evaluation of the loss; each a 0-dim tensor or array in nats, mean over particles.

    On the NumPyro side it is a pytree.

    Attributes:
        nll: negative log likelihood of each observed site, scaled by its plates.
        kl: KL(q || p) of each latent site, as it is, before ``kl_weight``.
        kl_weight: the weight of the KL in ``loss``.
        zero: the sum of no terms.

    Example:
        >>> terms = LossTerms(nll={"y": 12.0}, kl={"net.weight": 3.0}, kl_weight=0.5)
        >>> terms.loss, terms.negative_elbo
        (13.5, 15.0)

    See also:
        :class:`pyro_vd.TraceVD_ELBO`.
    """

    nll: dict[str, Any]
    kl: dict[str, Any]
    kl_weight: Any = 1.0
    zero: Any = 0.0

    @property
    def data(self) -> Any:
        """The data term: the sum of ``nll``."""
        return self._total(self.nll)

    @property
    def kl_total(self) -> Any:
        """The sum of ``kl``."""
        return self._total(self.kl)

    @property
    def loss(self) -> Any:
        """``data + kl_weight * kl_total``, what is minimised."""
        return self.data + self.kl_weight * self.kl_total

    @property
    def negative_elbo(self) -> Any:
        """``data + kl_total``: the loss at ``kl_weight=1``, comparable over a warm-up."""
        return self.data + self.kl_total

    def _total(self, terms: dict[str, Any]) -> Any:
        return functools.reduce(operator.add, terms.values()) if terms else self.zero
