"""Distributions of random weights, and their KL rules.

Each is an ordinary NumPyro distribution (draws, log_prob, expand, to_event, a pytree) with one thing more:
``noise()``, the parts from which a linear operation on the weight is sampled locally.
"""

from pyro_vd.numpyro.posteriors.base import WeightPosterior as WeightPosterior
from pyro_vd.numpyro.posteriors.dropout import BernoulliDropout as BernoulliDropout
from pyro_vd.numpyro.posteriors.dropout import ConcreteDropout as ConcreteDropout
from pyro_vd.numpyro.posteriors.dropout import CorrelatedDropoutNormal as CorrelatedDropoutNormal
from pyro_vd.numpyro.posteriors.group import GroupNormal as GroupNormal
from pyro_vd.numpyro.posteriors.low_rank import LowRankNormal as LowRankNormal
from pyro_vd.numpyro.posteriors.normal import DropoutNormal as DropoutNormal
