"""Distributions of random weights, and their KL rules.

Each is an ordinary Pyro distribution (draws, log_prob, expand, to_event) with one thing more:
``noise()``, the parts from which a linear operation on the weight is sampled locally.
"""

from pyro_vd.posteriors.base import WeightPosterior as WeightPosterior
from pyro_vd.posteriors.dropout import BernoulliDropout as BernoulliDropout
from pyro_vd.posteriors.dropout import ConcreteDropout as ConcreteDropout
from pyro_vd.posteriors.dropout import CorrelatedDropoutNormal as CorrelatedDropoutNormal
from pyro_vd.posteriors.group import GroupNormal as GroupNormal
from pyro_vd.posteriors.low_rank import LowRankNormal as LowRankNormal
from pyro_vd.posteriors.normal import DropoutNormal as DropoutNormal
