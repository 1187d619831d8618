"""A weight that is a distribution (``RandomWeight``), its uses in one trace, and the views of it."""

from pyro_vd.numpyro.weights.random_weight import RandomWeight as RandomWeight
from pyro_vd.numpyro.weights.state import WeightState as WeightState
from pyro_vd.numpyro.weights.state import run_counted as run_counted
