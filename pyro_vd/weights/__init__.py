"""A weight that is a distribution (``RandomWeight``), its uses in one trace, and the views of it."""

from pyro_vd.weights.random_weight import RandomWeight as RandomWeight
from pyro_vd.weights.state import WeightState as WeightState
